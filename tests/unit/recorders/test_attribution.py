"""attribution.html: the same size for any number of examples, and words as words."""

import pytest
import torch

from interptrain.recorders.attribution import BINS, HIGH, LOW, Histogram, Ranking, Shown, write_attribution
from tests.unit.recorders.test_html import HOSTILE, Page


def ranking(name=HOSTILE):
    z, null = Histogram(), Histogram()
    z.add(torch.tensor([0.0, 3.0]))
    null.add(torch.randn(64))
    figures = {"signed": 0.01, "z": 3.0, "share": 0.4, "share_null": 0.1}
    shown = Shown(7, figures, ["<q>", HOSTILE, " arr"], [None, -0.5, 1.0])
    return Ranking(name, HOSTILE, 0.5, z, null, {HOSTILE: [shown], "none": []})


def written(tmp_path, *rankings):
    words = {"shade": "demand", "title": HOSTILE, "summary": HOSTILE, "rule": HOSTILE, "more": HOSTILE}
    return write_attribution(tmp_path / "page.html", rankings, bar=2.0, **words).read_text()


def test_hostile_text_is_shown_as_text_wherever_it_stands(tmp_path):
    text = written(tmp_path, ranking())
    page = Page(text)
    assert "script" not in page.tags
    assert not page.handlers
    assert not page.addresses
    assert "".join(page.words).count(HOSTILE) == 9  # title twice, summary, rule, more, concept, hook, group, token
    assert "default-src 'none'" in text


def test_words_are_shaded_by_their_part_and_the_prompt_is_grey(tmp_path):
    text = written(tmp_path, ranking("pirate"))
    assert '<span class="given">&lt;q&gt;</span>' in text
    assert 'class="t less" style="--s:.38"' in text
    assert 'class="t" style="--s:.75" title="1"> arr</span>' in text


@pytest.mark.parametrize("shade", ["demand", "said"])
def test_the_page_explains_the_shade_that_it_has_and_names_the_other(tmp_path, shade):
    words = {"title": "", "summary": "", "rule": "", "more": ""}
    page = Page(write_attribution(tmp_path / "page.html", [ranking()], bar=2.0, shade=shade, **words).read_text())
    text = " ".join("".join(page.words).split())
    explained = {"demand": "its own part of the signed demand", "said": "with the concept added to the stream than"}
    other = {"demand": "--shade said", "said": "--shade demand"}
    assert [name for name, words in explained.items() if words in text] == [shade]
    assert [name for name, flag in other.items() if flag in text] == [shade]


def test_a_histogram_counts_every_finite_value_once_and_those_beyond_its_ends_in_the_last_bins():
    values = torch.cat([torch.linspace(LOW - 3, HIGH + 3, 1001), torch.tensor([torch.nan, torch.inf])])
    found = Histogram()
    for part in values.split(100):
        found.add(part)
    assert len(found.counts) == BINS
    assert int(found.counts.sum()) == 1001
    assert int(found.counts[0]) > int(found.counts[1])
    assert abs(float(found.heights().square().sum()) - 1) < 1e-5
    assert torch.equal(Histogram().heights(), torch.zeros(BINS))
