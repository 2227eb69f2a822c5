"""Make the buckets that are named as arguments, unless they are there: an S3 store begins without any."""

import sys

import boto3


def make_buckets(names: list[str]) -> list[str]:
    """Make what is missing, at AWS_ENDPOINT_URL with the keys of the environment.

    Returns:
        Those that were made.
    """
    store = boto3.client("s3")
    known = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    made = [name for name in names if name not in known]
    for name in made:
        store.create_bucket(Bucket=name)
    return made


if __name__ == "__main__":
    print("made:", ", ".join(make_buckets(sys.argv[1:])) or "nothing")
