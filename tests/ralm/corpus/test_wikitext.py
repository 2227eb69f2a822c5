from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralm.corpus import lines
from ralm.corpus.dump import read_dump
from ralm.corpus.site import Site
from ralm.corpus.wikitext import parse_article

SITE = Site()
LEAK = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|<ref|</|\|-|&lt;|&gt;|&nbsp;|&amp;|'''|(?m:^==)|__[A-Z]{3,}__|\[http|<br|(?m:^\|)"
)


def text_of(wikitext: str, site: Site = SITE) -> str:
    return "\n".join(section.text for section in parse_article(wikitext, site).sections)


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("An '''annual''' [[plant]]s ''x'' [[a|b]].", "An annual plants x b."),
        ("a<ref>x</ref>b<ref name=y/>c<ref name='z'>{{cite|t={{u|v}}}}</ref>d", "abcd"),
        ("a<!-- hidden\n -->b", "ab"),
        ("a {{t|x={{y|{{z}}}}|w=[[q|r]]}}b", "a b"),
        ("before\n{| class=x\n! h\n|-\n| a || {{t\n|x=1\n|}}\n|-\n| b\n|}\nafter", "before\nafter"),
        ("before\n{|\n|\n{|\n| inner\n|}\n|}\nafter", "before\nafter"),
        ("before\n{{box|\n{|\n| a\n|}}}\nafter", "before\nafter"),
        ("x [[File:A.jpg|thumb|a [[b]] c {{d}}]] y [[Category:Z]] [[de:Foo]] [[:Category:Q|shown]]", "x y shown"),
        ("[http://x.org label] and [http://x.org] and [//y.org/z two words].", "label and and two words."),
        ("<nowiki>[[not]] ''a'' {{link}}</nowiki>", "[[not]] ''a'' {{link}}"),
        ("<pre>a [[b]]</pre>c <syntaxhighlight lang=x>{{</syntaxhighlight>d <math>\\frac{1}{2}</math>e", "c d e"),
        ("10<sup>6</sup> and 1<sup>st</sup> and H<sub>2</sub>O", "10^6 and 1st and H2O"),
        ("a&nbsp;b &amp;ndash; c &lt;i&gt;", "a b – c <i>"),
        ("* one\n** two\n# three\n; term : x\n: indented\n----\nend", "one\ntwo\nthree\nterm: x\nindented\nend"),
        ("__TOC__\n__NOEDITSECTION__text __init__", "text __init__"),
        ("-{zh-hans:电脑;zh-hant:電腦}-是", "电脑是"),
        (
            "Rome ({{lang|la|Roma}}) is {{convert|12|km|mi}} away ({{IPA|x}}; from x).",
            "Rome (Roma) is 12 km away (from x).",
        ),
        ("<table><tr><td>cell</td></tr></table>after", "after"),
        ("<gallery>\nFile:a.jpg|x\n</gallery>after", "after"),
        ("[[Mercury (planet)|]] [[Foo#Bar]]", "Mercury Foo#Bar"),
        ("{{{1|default}}}text", "text"),
        ("He said:\n{{quote|text=All [[men]]\nare equal.|author=X}}", "He said:\nAll men are equal."),
        ("Kabul ({{lang-ps|کابل}})", "Kabul (کابل)"),
        ("see [http://x.org a [[talk]] of [[May]] 2005].", "see a talk of May 2005."),
        ("[http://x.org -{zh-hans:电脑;zh-hant:電腦}-] -{A|[[a|b]]}-", "电脑 b"),
    ],
)
def test_markup_becomes_plain_text(wikitext: str, expected: str) -> None:
    assert text_of(wikitext) == expected


@pytest.mark.parametrize(
    "opened",
    [
        "{{cite|a",
        "[[File:x.jpg|thumb",
        "{| class=x\n| y",
        "<ref>x",
        "<!-- x",
        "<math>x",
        "<nowiki>",
        "'''x",
        "{{a {{b}}",
    ],
)
def test_nothing_unclosed_swallows_the_next_section(opened: str) -> None:
    article = parse_article(f"Lead.\n{opened}\n\n== Next ==\nStill {{{{t}}}}here<ref>q</ref>.\n", SITE)
    assert article.sections[-1].heading == "Next"
    assert article.sections[-1].text == "Still here."
    assert article.sections[0].text.startswith("Lead.")


@pytest.mark.parametrize("stray", ["}}", "]]", "|}", "</ref>", "</div>", "-->"])
def test_a_stray_end_loses_nothing(stray: str) -> None:
    assert text_of(f"One.\n{stray}\nTwo.").replace("-->", "").split() == ["One.", "Two."]


def test_sections_carry_the_path_of_their_headings() -> None:
    article = parse_article(
        "L\n== A ==\na\n=== B ''x'' ===\nb\n== C<ref>q</ref> ==\n=== D ===\nd\n== Empty ==\n{{reflist}}", SITE
    )
    assert [(section.heading, section.text) for section in article.sections] == [
        ("", "L"),
        ("A", "a"),
        ("A: B x", "b"),
        ("C: D", "d"),
    ]


def test_infobox_becomes_field_lines() -> None:
    article = parse_article(
        "{{Infobox person\n| name = Ada\n| birth_date = {{birth date|1815|12|10|df=y}}\n| image = A.jpg\n"
        "| spouse = [[William King|King]]<ref>x</ref><br />two\n| empty =\n| known_for = {{ubl|[[a]]|b}}\n}}\nAda was.",
        SITE,
    )
    assert article.infoboxes == ["name: Ada\nbirth date: 1815-12-10\nspouse: King, two\nknown for: a, b"]
    assert [section.text for section in article.sections] == ["Ada was."]


def test_infobox_is_told_by_its_shape_in_any_language() -> None:
    article = parse_article(
        "{{Ficha de río\n| nombre = Ebro\n| país = España\n| largo = 930\n| foz = mar\n}}\nEl Ebro.", SITE
    )
    assert article.infoboxes == ["nombre: Ebro\npaís: España\nlargo: 930\nfoz: mar"]


def test_namespaces_come_from_the_site() -> None:
    site = Site.from_names({6: "Datei", 14: "Kategorie"})
    assert text_of("x [[Datei:A.jpg|b]] [[Kategorie:C]] [[File:d.png]] y", site) == "x y"
    assert text_of("x [[Bild:A.jpg|b]] y", site) == "x y"  # an old alias, told by the file name


@pytest.mark.parametrize(
    "piece", ["{{", "[[", "<ref>", "\n{|", "<!--", "{{{", "[[File:", "}}", "|}", "<math>", "<table>"]
)
def test_time_is_linear_in_broken_markup(piece: str) -> None:
    started_at = time.process_time()
    parse_article("text " + (piece + " x ") * 20_000, SITE)
    assert time.process_time() - started_at < 3


@pytest.mark.parametrize(
    ("start", "end"), [("{{nowrap|", "}}"), ("{{Infobox\n|a=", "\n}}"), ("[[a|", "]]"), ("\n{|\n", "\n|}")]
)
def test_deep_nesting_is_no_problem(start: str, end: str) -> None:
    article = parse_article(f"Lead.\n{start * 3000}x{end * 3000}\nEnd.", SITE)
    assert article.sections[0].text.startswith("Lead.")
    assert article.sections[0].text.endswith("End.")


def test_words_agree_with_wikitextparser() -> None:
    parser = pytest.importorskip("wikitextparser")
    source = (
        "'''Tea''' is a [[drink]] made from ''[[Camellia sinensis|leaves]]'' in [[hot water]].{{citation needed}}\n\n"
        "It came from [[China]] and spread.\n== Kinds ==\n* [[Green tea|Green]]\n* Black\n"
    )
    oracle = parser.remove_markup(source.replace("== Kinds ==", ""))
    assert text_of(source).split() == oracle.replace("*", "").split()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["enwiki-20060303-part", "enwiki-20160501-pages-articles1-shortened", "enwiki-table-markup"]
)
def test_real_dumps_leak_no_markup(shared_data: Path, name: str, tmp_path: Path) -> None:
    from collections import Counter

    from ralm.corpus.dump import WikiPages
    from ralm.corpus.passages import SplitLimits, cut_documents

    path = shared_data / "wiki" / f"{name}.xml.bz2"
    total, leaking = 0, []
    for site, page in read_dump(path, Counter()):
        rows = cut_documents(WikiPages(site, [page]).documents(), SplitLimits()).columns
        for section, text in zip(rows["section"], rows["text"], strict=True):
            total += 1
            if match := LEAK.search(f"{text}\n{section}"):
                leaking.append((page.title, match[0]))
    assert total > 50
    assert len(leaking) < total / 1000, leaking[:20]


def test_shipped_dump_leaks_no_markup(dump_file: Path) -> None:
    from collections import Counter

    for site, page in read_dump(dump_file, Counter()):
        article = parse_article(page.wikitext, site)
        for text in [*article.infoboxes, *(f"{section.heading}\n{section.text}" for section in article.sections)]:
            assert not LEAK.search(text), (page.title, text)


@pytest.fixture
def dump_file() -> Path:
    return Path(__file__).parents[2] / "data" / "dump.xml"


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab ,.;:)(\n\u2003\u200b–é𝔸"), max_size=60))
def test_spaces_are_found_by_numpy_as_by_regex(text: str) -> None:
    text = "\n" + text
    by_regex = lines.clean_lines(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "MIN_CODES", 0)
        assert lines.clean_lines(text) == by_regex


def test_a_line_without_a_name_is_no_field() -> None:
    box = "{{Infobox town\n| skyline = a.jpg |\n[[night.jpg]]\nnickname = Old one\n| area = 3 km\n}}x"
    assert parse_article(box, SITE).infoboxes == ["area: 3 km"]
