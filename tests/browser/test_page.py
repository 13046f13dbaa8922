"""The neighbor browser's page, used as people use it: with a mouse, a keyboard, a phone, a screen reader."""

import base64
import csv
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.conftest import (
    CHROMIUM,
    MARKUP,
    MAX_UPLOAD_MB,
    NUM_CLIPS,
    OTHER_FORMAT,
    PAGE,
    PART,
    PATIENCE_SECONDS,
    SCREENSHOTS,
    SILENT,
    SOUND_ONLY,
    Site,
)  # fmt: skip
from tests.support.clips import make_clip, make_sound

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
]
Open = Callable[..., Page]
WAYS = {"v2a": "video → audio", "a2v": "audio → video", "v2v": "video → video", "a2a": "audio → audio"}
NO_OBSERVER = "window.IntersectionObserver = class { observe() {} unobserve() {} }"
NO_ANSWER_YET = """
const ask = fetch, answered = new Promise((resolve) => { window.answer = resolve });
window.fetch = async (...request) => { await answered; return ask(...request) };
"""
NEVER_NEAR_THE_END = {"width": 1280, "height": 500}
MAP_MARGIN = 16  # of map.js


def ask(site: Site, path: str) -> dict:
    with urllib.request.urlopen(site.url + path) as answer:
        return json.load(answer)


def id_of(site: Site, path: str) -> int:
    """The id of the clip whose path ends so."""
    clips = ask(site, f"/api/clips?limit={NUM_CLIPS}")["clips"]
    return next(clip["id"] for clip in clips if clip["path"] == path)


def cards(page: Page) -> Locator:
    return page.locator("main section:visible .grid .card")


def ids(page: Page) -> list[int]:
    return cards(page).evaluate_all("cards => cards.map(card => Number(card.dataset.id))")


def plays_on(page: Page) -> None:
    """What plays advances, more than once round too."""
    page.wait_for_selector("video, audio", state="attached")
    page.wait_for_function("() => document.querySelector('video, audio').currentTime > 0.1")
    before = page.evaluate("document.querySelector('video, audio').currentTime")
    page.wait_for_function("before => document.querySelector('video, audio').currentTime != before", arg=before)


def pictures_load(card: Locator) -> None:
    """The card of a clip with both sides gets its poster and its spectrogram."""
    images = card.locator("img")
    expect(images).to_have_count(2)
    for image in images.all():
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0


def settle(page: Page) -> None:
    """Wait until what was asked for is there, with its pictures."""
    expect(page.locator("#status")).to_contain_text(re.compile("clips|neighbors|positives"))
    page.wait_for_load_state("networkidle")


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")


def neighbors_of(site: Site, query: int | str, by: str, **parameters: object) -> list[int]:
    more = "".join(f"&{name}={value}" for name, value in parameters.items())
    found = ask(site, f"/api/neighbors?query={query}&by={by}{more}")["neighbors"]
    return [neighbor["id"] for neighbor in found]


# -- The grid --


def test_grid_shows_clips_and_what_they_lack(open_page: Open, site: Site) -> None:
    page = open_page("/?name=s")  # the silent one and the sound without picture, beside others
    expect(page.get_by_role("heading", level=1)).to_have_text("Clips")
    silent = page.locator(f'.card[data-id="{id_of(site, SILENT)}"]')
    expect(silent.get_by_text("no audio")).to_be_visible()
    expect(silent.locator("img")).to_have_count(1)
    only_sound = page.locator(f'.card[data-id="{id_of(site, SOUND_ONLY)}"]')
    expect(only_sound.get_by_text("no video")).to_be_visible()
    expect(only_sound.get_by_alt_text("Spectrogram of")).to_be_visible()
    expect(page.locator("#status")).to_have_text(f"{len(ids(page))} clips")


def test_pictures_load_and_media_does_not_until_asked(open_page: Open) -> None:
    page, asked = open_page("/?name=no such clip"), []
    page.on("request", lambda request: asked.append(urllib.parse.urlsplit(request.url).path))
    page.get_by_role("searchbox", name="Name").fill("")
    expect(cards(page)).to_have_count(PAGE)
    pictures_load(cards(page).first)
    expect(page.locator("main img:not([loading=lazy])")).to_have_count(0)
    expect(page.locator("video, audio")).to_have_count(0)
    assert any(path.startswith("/poster/") for path in asked)
    assert not any(path.startswith("/media/") for path in asked)


def test_names_are_text(open_page: Open, site: Site) -> None:
    page = open_page()
    card = page.locator(f'.card[data-id="{id_of(site, MARKUP)}"]')
    expect(card.locator(".name")).to_have_text(MARKUP)
    card.locator(".pick").click()
    expect(page.locator("#query-facts")).to_contain_text(MARKUP)
    expect(page.locator("#x")).to_have_count(0)


def test_more_comes_by_itself(open_page: Open) -> None:
    page = open_page(viewport=NEVER_NEAR_THE_END)
    expect(cards(page)).to_have_count(PAGE)
    page.mouse.wheel(0, 100_000)
    expect(cards(page)).to_have_count(NUM_CLIPS)
    assert len(set(ids(page))) == NUM_CLIPS
    expect(page.get_by_role("button", name="Show more clips")).to_be_hidden()


def test_more_comes_by_its_button(open_page: Open) -> None:
    page = open_page(script=NO_OBSERVER)
    expect(cards(page)).to_have_count(PAGE)
    page.get_by_role("button", name="Show more clips").press("Enter")
    expect(cards(page)).to_have_count(NUM_CLIPS)


@pytest.mark.parametrize("path", ["/", "/?view=neighbors&query=3&by=v2v"])
def test_a_page_that_fails_is_asked_for_again_by_its_button_alone(path: str, open_page: Open, site: Site) -> None:
    page, asked = open_page("/?view=map", expected_status=500, viewport={"width": 1280, "height": 3000}), []

    def fail(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=500, json={"detail": "out of memory"})

    page.route(re.compile(r"/api/.*offset=[1-9]"), fail)
    page.goto(site.url + path)
    expect(page.get_by_role("alert")).to_contain_text("out of memory")
    page.wait_for_timeout(500)
    assert len(asked) == 1
    page.unroute(re.compile(r"/api/.*offset=[1-9]"))
    page.locator("main section:visible .more").click()
    expect(cards(page)).to_have_count(NUM_CLIPS if path == "/" else len(neighbors_of(site, 3, "v2v", limit=200)))


def test_clips_that_two_pages_share_are_shown_once(open_page: Open, site: Site) -> None:
    page = open_page("/?view=map", script=NO_OBSERVER)
    second = ask(site, f"/api/clips?offset={PAGE - 5}&limit=48")
    page.route(f"**/api/clips?*offset={PAGE}*", lambda route: route.fulfill(json=second))
    page.get_by_role("link", name="Clips").click()
    page.get_by_role("button", name="Show more clips").click()
    expect(cards(page)).to_have_count(NUM_CLIPS)
    assert len(set(ids(page))) == NUM_CLIPS


def test_filters_by_label_and_name(open_page: Open, site: Site) -> None:
    page = open_page()
    expect(cards(page)).to_have_count(PAGE)
    page.get_by_role("combobox", name="Label").select_option("1")
    wanted = ask(site, "/api/clips?label=1")
    expect(page.locator("#status")).to_have_text(f"{wanted['total']} clips")
    assert ids(page) == [clip["id"] for clip in wanted["clips"]]
    page.get_by_role("searchbox", name="Name").press_sequentially("FOR")
    page.wait_for_url("**/?label=1&name=FOR")
    page.get_by_role("searchbox", name="Name").press_sequentially("MAT")
    page.wait_for_url("**/?label=1&name=FORMAT")
    expect(cards(page)).to_have_count(1)
    expect(cards(page).locator(".name")).to_have_attribute("title", OTHER_FORMAT)
    page.go_back()  # the letters of a text are one step
    expect(cards(page)).to_have_count(wanted["total"])
    page.get_by_role("searchbox", name="Name").fill("no such clip")
    expect(page.get_by_text("No clip fits these filters.")).to_be_visible()


# -- Playing --


def test_selected_clips_are_tagged_and_saved(open_page: Open, site: Site, tmp_path: Path) -> None:
    page = open_page()
    bar = page.get_by_role("form", name="Selected clips")
    expect(bar).to_be_hidden()
    expect(cards(page)).to_have_count(PAGE)
    chosen = [ids(page)[1], id_of(site, MARKUP)]
    for id in chosen:
        page.locator(f'.card[data-id="{id}"] .select').check()
    expect(bar).to_contain_text("2 selected")
    bar.get_by_label("Tag").fill("<b>bark</b>, loud")
    bar.get_by_role("button", name="Add").click()
    for id in chosen:
        expect(page.locator(f'.card[data-id="{id}"] .tag')).to_have_text("<b>bark</b>, loud")
    with page.expect_download() as download:
        bar.get_by_role("button", name="Save as CSV").click()
    download.value.save_as(tmp_path / "clips.csv")
    with (tmp_path / "clips.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["id", "path", "label", "tags"]
    assert [(int(row[0]), row[3]) for row in rows] == [(id, "<b>bark</b>, loud") for id in chosen]
    assert rows[1][1:3] == [MARKUP, "0"]

    page.locator("#tagged").select_option(label="<b>bark</b>, loud (2)")
    expect(cards(page)).to_have_count(2)
    again = open_page(page.url.removeprefix(site.url))  # the link, and the file
    expect(cards(again)).to_have_count(2)
    expect(again.locator(".card .tag")).to_have_count(2)
    for box in again.locator(".card .select").all():
        box.check()
    again.get_by_role("form", name="Selected clips").get_by_label("Tag").fill("<b>bark</b>, loud")
    again.get_by_role("button", name="Remove").click()
    expect(again.locator(".card .tag")).to_have_count(0)
    again.get_by_role("button", name="Clear").click()
    expect(again.get_by_role("form", name="Selected clips")).to_be_hidden()


def test_hover_plays_one_clip_at_a_time(open_page: Open) -> None:
    page = open_page()
    cards(page).nth(0).hover()
    expect(cards(page).nth(0).locator("video")).to_have_count(1)
    plays_on(page)
    cards(page).nth(1).hover()
    expect(cards(page).nth(1).locator("video")).to_have_count(1)
    expect(page.locator("video")).to_have_count(1)
    plays_on(page)
    page.mouse.move(0, 0)
    expect(page.locator("video")).to_have_count(0)


def test_a_click_on_play_keeps_what_the_hover_just_started(open_page: Open) -> None:
    page = open_page("/?name=other format")
    expect(cards(page)).to_have_count(1)
    card, video = cards(page).first, page.locator("video")
    page.clock.install()
    card.hover()
    page.clock.run_for(200)
    expect(video).to_have_count(1)
    card.get_by_role("button", name="Play").click()
    expect(video).to_have_count(1)
    page.clock.run_for(1000)
    card.get_by_role("button", name="Play").click()
    expect(video).to_have_count(0)
    card.get_by_role("button", name="Play").click()
    expect(video).to_have_count(1)
    card.get_by_role("button", name="Play").click()  # what a click has started, the next one stops at once
    expect(video).to_have_count(0)


def test_sound_comes_with_the_first_click_or_key(open_page: Open) -> None:
    page = open_page()
    untouched = page.context.new_cdp_session(page)  # Playwright's own looks at a page count as a user's action

    def becomes(expression: str) -> None:
        for _ in range(40 * PATIENCE_SECONDS):
            found = untouched.send("Runtime.evaluate", {"expression": expression, "returnByValue": True})
            if found["result"].get("value") is True:
                return
            page.wait_for_timeout(25)
        raise AssertionError(f"{expression} did not come true")

    becomes("document.querySelectorAll('.card').length > 0 && document.getElementById('sound-hint').hidden")
    page.mouse.move(100, 250)  # the first card
    becomes("document.querySelector('video')?.currentTime > 0.1")
    becomes("document.querySelector('video').muted && !document.getElementById('sound-hint').hidden")
    page.keyboard.press("a")  # a click on the card would open it
    becomes("document.getElementById('sound-hint').hidden && !document.querySelector('video').muted")
    becomes("document.querySelector('video').webkitAudioDecodedByteCount > 0")
    page.mouse.click(640, 120)  # nothing is there
    becomes("document.querySelector('video') === null")
    page.mouse.move(100, 250)
    becomes("document.querySelector('video')?.currentTime > 0.1 && !document.querySelector('video').muted")


def test_focus_plays_and_escape_stops(open_page: Open) -> None:
    page = open_page()
    expect(cards(page)).to_have_count(PAGE)
    page.locator("#label").focus()
    page.keyboard.press("Tab")
    expect(cards(page).first.locator(".pick")).to_be_focused()
    plays_on(page)
    assert not page.evaluate("document.querySelector('video').muted")  # a key was pressed: sound is allowed
    page.keyboard.press("ArrowRight")
    expect(cards(page).nth(1).locator("video")).to_have_count(1)
    cards(page).nth(3).hover()
    expect(cards(page).nth(3).locator("video")).to_have_count(1)
    expect(page.locator("video")).to_have_count(1)  # although the other has the focus
    page.keyboard.press("Escape")
    expect(page.locator("video")).to_have_count(0)


def test_less_motion_plays_by_the_button_alone(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    first = cards(page).first
    first.hover()
    first.locator(".pick").focus()
    button = first.get_by_role("button", name="Play")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "true")
    plays_on(page)
    button.press("Enter")
    expect(page.locator("video")).to_have_count(0)


@pytest.mark.parametrize("path", [SOUND_ONLY, SILENT, OTHER_FORMAT])
def test_every_kind_of_clip_plays(path: str, open_page: Open, site: Site) -> None:
    page = open_page(f"/?view=neighbors&query={id_of(site, path)}")
    page.locator("#query-card").get_by_role("button", name="Play").press("Enter")
    plays_on(page)
    assert page.evaluate("document.querySelector('video, audio').localName") == (
        "audio" if path == SOUND_ONLY else "video"
    )


def test_a_part_of_a_file_is_named_and_played_alone(open_page: Open, site: Site) -> None:
    page = open_page(f"/?name={PART.rsplit('/')[-1]}")
    card = cards(page).first
    expect(card).to_contain_text("0.4–0.8 s")
    card.get_by_role("button", name="Play").press("Enter")
    plays_on(page)
    assert page.evaluate("document.querySelector('video').duration") == pytest.approx(0.4, abs=0.11)


# -- Neighbors --


@pytest.mark.parametrize("by", WAYS)
def test_each_way_shows_its_neighbors(by: str, open_page: Open, site: Site) -> None:
    page = open_page()
    expect(cards(page)).to_have_count(PAGE)
    query = ids(page)[5]
    cards(page).nth(5).locator(".pick").click()
    page.get_by_role("button", name=WAYS[by]).click()
    expect(page.get_by_role("button", name=WAYS[by])).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#answers")).not_to_have_attribute("aria-busy", "true")
    wanted = ask(site, f"/api/neighbors?query={query}&by={by}")["neighbors"]
    expect(cards(page).first).to_have_attribute("data-id", str(wanted[0]["id"]))
    assert ids(page)[: len(wanted)] == [neighbor["id"] for neighbor in wanted]
    assert f"by={by}" in page.url
    asked = cards(page).first.locator(".asked dd")
    expect(asked).to_have_count(1)
    expect(asked).to_have_text(f"{wanted[0]['score']:.2f}".replace("-", "−"))
    shown = cards(page).first.locator(".scores dd").all_text_contents()
    sides = [wanted[0][side] for side in ("video", "audio")]
    assert shown[-2:] == ["–" if side is None else f"{side:.2f}".replace("-", "−") for side in sides]
    expect(page.locator(".how")).to_contain_text("ms")


def test_agreement_shows_three_lists_side_by_side(open_page: Open, site: Site) -> None:
    page = open_page("/?view=neighbors&query=3&by=agreement")
    wanted = ask(site, "/api/agreement?query=3")
    places = []
    for title, key in (("Positives", "positives"), ("Look-alikes", "looks_alike"), ("Sound-alikes", "sounds_alike")):
        column = page.locator(".column", has=page.get_by_role("heading", name=title))
        expect(column.locator(".card")).to_have_count(len(wanted[key]))
        shown = column.locator(".card").evaluate_all("cards => cards.map(card => Number(card.dataset.id))")
        assert shown == [neighbor["id"] for neighbor in wanted[key]]
        places.append(column.bounding_box())
    assert places[0]["y"] == places[1]["y"] == places[2]["y"]
    assert places[0]["x"] < places[1]["x"] < places[2]["x"]
    query = page.locator("#query-card .card").bounding_box()
    assert query["y"] + query["height"] <= places[0]["y"]


def test_an_empty_list_and_a_fixed_choice_say_why(open_page: Open, site: Site) -> None:
    found = ask(site, "/api/agreement?query=3") | {"looks_alike": []}
    page = open_page()
    page.route("**/api/agreement*", lambda route: route.fulfill(json=found))
    page.goto(f"{site.url}/?view=neighbors&query=3&by=agreement")
    expect(
        page.get_by_text("No clip looks more alike than 95 % of the pairs of this set and sounds less")
    ).to_be_visible()
    expect(page.get_by_label("Exact search")).to_be_disabled()
    expect(page.get_by_text("clips: every search looks at all of them")).to_be_visible()


def test_ways_that_a_clip_cannot_be_asked_say_why(open_page: Open, site: Site) -> None:
    page = open_page(f"/?view=neighbors&query={id_of(site, SILENT)}")
    button = page.get_by_role("button", name="audio → audio")
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(button).to_have_attribute("title", "this clip has no audio")
    expect(
        page.get_by_text("Not possible: audio → video, audio → audio, agreement (this clip has no audio)")
    ).to_be_visible()
    before = page.url
    button.click(force=True)
    assert page.url == before
    page.goto(f"{site.url}/?view=neighbors&query={id_of(site, SOUND_ONLY)}")
    expect(page.get_by_role("button", name="audio → video")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="video → audio")).to_have_attribute("aria-disabled", "true")


def test_a_way_that_a_link_asks_in_vain_is_explained(open_page: Open, site: Site) -> None:
    page = open_page(f"/?view=neighbors&query={id_of(site, SILENT)}&by=a2a", expected_status=400)
    expect(page.get_by_role("alert")).to_contain_text("audio")
    page.get_by_role("button", name="video → video").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(cards(page).first).to_be_visible()


def test_an_unknown_clip_is_explained(open_page: Open) -> None:
    page = open_page("/?view=neighbors&query=123456", expected_status=404)
    expect(page.get_by_role("alert")).to_contain_text("123456")


def test_label_narrows_neighbors_and_more_come(open_page: Open, site: Site) -> None:
    page = open_page("/?view=neighbors&query=3&by=v2v&label=1", script=NO_OBSERVER)
    expect(cards(page)).to_have_count(24)
    page.get_by_role("button", name="Show more neighbors").click()
    wanted = neighbors_of(site, 3, "v2v", label=1, limit=48)
    assert len(wanted) > 24
    expect(cards(page)).to_have_count(len(wanted))
    assert ids(page) == wanted


def test_approximate_answers_tell_their_recall(open_page: Open, site: Site) -> None:
    about = ask(site, "/api/about")
    for store in about["stores"]:
        store["index"] = {"state": "ready", "why": "an index", "recall": {"v2v": 0.987}}
    answer = ask(site, "/api/neighbors?query=3&by=v2v") | {"exact": False, "recall": 0.987, "milliseconds": 1.26}
    page = open_page("/?view=map")
    page.route("**/api/about", lambda route: route.fulfill(json=about))
    page.route("**/api/neighbors?*", lambda route: route.fulfill(json=answer))
    page.goto(f"{site.url}/?view=neighbors&query=3&by=v2v")
    expect(page.locator(".how")).to_have_text("approximate search · measured recall 0.987 · 1.3 ms")
    with page.expect_request(lambda request: "exact=true" in request.url):
        page.get_by_label("Exact search").check()
    assert "exact=1" in page.url


def test_index_being_built_is_told_until_it_is_ready(open_page: Open, site: Site) -> None:
    building, ready = ask(site, "/api/about"), ask(site, "/api/about")
    building["stores"][0]["index"] = {"state": "building", "why": "the index is being built", "recall": None}
    page = open_page("/?view=map", expected_status=500)
    page.route("**/api/about", lambda route: route.fulfill(json=building))
    page.goto(site.url)
    expect(page.get_by_text("the index is being built")).to_be_visible()
    page.unroute("**/api/about")
    page.route("**/api/about", lambda route: route.fulfill(status=500, json={"detail": "out of memory"}))
    expect(page.get_by_role("alert")).to_contain_text("out of memory")  # once in vain is not the end of asking
    page.unroute("**/api/about")
    page.route("**/api/about", lambda route: route.fulfill(json=ready))
    expect(page.get_by_text("the index is being built")).to_be_hidden()


# -- Links --


STATES = [
    "/?label=1&name=00",
    "/?view=neighbors&query=3&by=a2v&label=0&exact=1&store=1",
    "/?view=neighbors&query=3&by=agreement&compare=1",
    "/?view=map&color=cluster&cluster=1",
    "/?view=map&label=1&store=1",
]


@pytest.mark.parametrize("path", STATES)
def test_a_link_opens_the_same_state(path: str, open_page: Open) -> None:
    page, again = open_page(path), open_page(path)
    settle(page)
    settle(again)
    assert again.url.endswith(path)
    look = """() => ({
      ids: [...document.querySelectorAll("main section:not([hidden]) .grid .card")].map((card) => card.dataset.id),
      pressed: [...document.querySelectorAll('main [aria-pressed="true"]')].map((button) => button.textContent),
      fields: [...document.querySelectorAll("#filters :is(input, select)")].map((f) => f.checked || f.value),
    })"""
    first = page.evaluate(look)
    assert first == again.evaluate(look)
    fields = first["fields"]  # name, label, tag, store, exact, compare
    assert fields[1] == ("1" if "label=1" in path else "0" if "label=0" in path else "")
    assert fields[3] == ("1" if "store=1" in path else "0")
    assert fields[5] is True or "compare" not in path
    assert any("cluster 2" in text for text in first["pressed"]) == ("cluster=1" in path)


def test_back_and_forward(open_page: Open) -> None:
    notes_the_place = """addEventListener("click", ({ target }) => {
      window.scrolled = scrollY;
      window.place = target.closest(".card")?.getBoundingClientRect().top;
    }, true)"""
    page = open_page(viewport=NEVER_NEAR_THE_END, script=notes_the_place)
    expect(cards(page)).to_have_count(PAGE)
    page.mouse.wheel(0, 100_000)
    expect(cards(page)).to_have_count(NUM_CLIPS)
    clicked = cards(page).nth(NUM_CLIPS - 4)
    clicked.locator(".pick").click()
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    scrolled, place = page.evaluate("[scrolled, place]")
    assert scrolled > 500
    assert page.evaluate("scrollY") == 0
    neighbors = page.url
    page.get_by_role("button", name="audio → audio").click()
    expect(page.get_by_role("button", name="audio → audio")).to_have_attribute("aria-pressed", "true")
    page.go_back()
    expect(page.get_by_role("button", name="video → audio")).to_have_attribute("aria-pressed", "true")
    assert page.url == neighbors
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Clips")
    expect(cards(page)).to_have_count(NUM_CLIPS)
    assert clicked.bounding_box()["y"] == pytest.approx(
        place, abs=2
    )  # pixels of the page may differ: cards not yet drawn
    page.go_forward()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Neighbors of")


# -- Files brought by the user --


def drop(page: Page, path: Path) -> None:
    """What a browser sends when a file of the desktop is dropped onto the page."""
    content = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([content, name]) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          transfer.items.add(new File([bytes], name));
          return transfer;
        }""",
        [content, path.name],
    )
    page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop the file to find its neighbors")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})


def test_a_dropped_video_gets_neighbors_in_both_runs(open_page: Open, tmp_path: Path) -> None:
    make_clip(tmp_path / "mine.mp4", 1, 500)
    page = open_page()
    expect(cards(page)).to_have_count(PAGE)
    drop(page, tmp_path / "mine.mp4")
    expect(page.get_by_text("Embedding mine.mp4…")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Neighbors of mine.mp4")
    expect(cards(page).first).to_be_visible()
    expect(page.get_by_text("Embedding mine.mp4…")).to_be_hidden()
    pictures_load(page.locator("#query-card"))
    page.locator("#query-card").get_by_role("button", name="Play").press("Enter")
    plays_on(page)
    assert page.evaluate("document.querySelector('video').src").startswith("blob:")
    for way in [*WAYS.values(), "agreement"]:
        page.get_by_role("button", name=way).click()
        expect(page.locator("#answers")).not_to_have_attribute("aria-busy", "true")
        expect(cards(page).first).to_be_visible()
    page.get_by_label("Compare both runs").check()
    expect(page.locator(".answer")).to_have_count(2)
    assert page.url.count("query=u-") == 1
    link = page.url
    page.goto("about:blank")
    page.goto(link)  # the server still holds it, this page no longer has the file
    expect(page.get_by_role("heading", level=1)).to_have_text("Neighbors of mine.mp4")
    expect(page.locator("#query-card img").first).to_be_visible()
    expect(page.locator("#query-card").get_by_role("button")).to_have_count(0)


def test_a_chosen_sound_finds_pictures(open_page: Open, tmp_path: Path) -> None:
    make_sound(tmp_path / "mine.wav", 0, 500)
    page = open_page()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file…").press("Enter")
    chooser.value.set_files(tmp_path / "mine.wav")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neighbors of mine.wav")
    expect(page.get_by_role("button", name="audio → video")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="video → video")).to_have_attribute("title", "this clip has no video")
    expect(cards(page).first).to_be_visible()
    page.locator("#query-card").get_by_role("button", name="Play").press("Enter")
    plays_on(page)


def test_what_is_asked_before_the_server_answers_is_not_lost(open_page: Open, tmp_path: Path) -> None:
    make_sound(tmp_path / "mine.wav", 0, 500)
    page = open_page(script=NO_ANSWER_YET)
    expect(page.get_by_role("search")).to_be_hidden()  # filters that could not answer yet
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file…").click()
    chooser.value.set_files(tmp_path / "mine.wav")
    page.route("**/api/clips?*", lambda route: None)  # nor does a view that takes long hold it up
    page.evaluate("answer()")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neighbors of mine.wav")
    expect(page.get_by_role("search")).to_be_visible()


def test_a_server_that_does_not_answer_is_told(open_page: Open, site: Site, tmp_path: Path) -> None:
    make_sound(tmp_path / "mine.wav", 0, 500)
    page, sent = open_page("/?view=map", expected_status=500), []
    page.route("**/api/about", lambda route: route.fulfill(status=500, json={"detail": "out of memory"}))
    page.goto(site.url)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("out of memory")
    page.on("request", lambda request: sent.append(request.url))
    page.locator("#file").set_input_files(tmp_path / "mine.wav")
    expect(alert).to_contain_text("reload this page")
    page.get_by_role("button", name="Dismiss this message").click()
    expect(alert).to_be_hidden()
    assert sent == []


def test_a_broken_file_is_refused_in_words(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 100)
    page = open_page(expected_status=422)
    expect(cards(page)).to_have_count(PAGE)
    drop(page, tmp_path / "broken.mp4")
    expect(page.get_by_role("alert")).to_contain_text("broken.mp4")
    assert page.url.endswith("/")
    page.get_by_role("button", name="Dismiss this message").click()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_too_large_file_is_not_sent(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "large.mp4").write_bytes(bytes((MAX_UPLOAD_MB << 20) + 1))
    page = open_page()
    expect(cards(page)).to_have_count(PAGE)
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    page.locator("#file").set_input_files(tmp_path / "large.mp4")
    expect(page.get_by_role("alert")).to_contain_text(f"at most {MAX_UPLOAD_MB}.0 MB")
    assert not any("/api/uploads" in url for url in sent)


def test_an_upload_that_is_gone_is_explained(open_page: Open) -> None:
    page = open_page("/?view=neighbors&query=u-0123456789abcdef&by=v2v", expected_status=404)
    expect(page.get_by_role("alert")).not_to_be_empty()


# -- Two runs --


def test_two_runs_are_compared(open_page: Open, site: Site) -> None:
    page = open_page("/?view=neighbors&query=3&by=v2v", script=NO_OBSERVER)
    page.get_by_label("Compare both runs").check()
    expect(page.locator(".answer")).to_have_count(2)
    found = [neighbors_of(site, 3, "v2v", store=store) for store in (0, 1)]
    names = [store["name"] for store in ask(site, "/api/about")["stores"]]
    assert [Path(name).name for name in names] == ["embeddings 0", "embeddings 1"]
    shared = set(found[0]) & set(found[1])
    for i in (0, 1):
        answer = page.locator(".answer").nth(i)
        expect(answer.get_by_role("heading")).to_have_text(f"embeddings {i}")
        expect(answer.get_by_role("heading")).to_have_attribute("title", names[i])
        expect(answer.get_by_text(f"{len(shared)} of 24 are in both runs")).to_be_visible()
        marked = answer.locator(".card", has_text="in both")
        assert set(marked.evaluate_all("cards => cards.map(card => Number(card.dataset.id))")) == shared
    left, right = (page.locator(".answer").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    page.get_by_role("button", name="Show more neighbors").click()
    expect(page.locator(".answer").nth(1).locator(".card")).to_have_count(48)
    expect(page.locator(".answer").nth(0).locator(".card")).to_have_count(48)


def test_a_clip_of_one_run_alone_shows_that_runs_neighbors(open_page: Open, site: Site) -> None:
    page = open_page("/?view=map", expected_status=404, script=NO_OBSERVER)
    lacks = {"detail": "clip 3 is in embeddings 1, but not in embeddings 0"}
    page.route("**/api/neighbors?*store=0*", lambda route: route.fulfill(status=404, json=lacks))
    page.goto(f"{site.url}/?view=neighbors&query=3&by=v2v&compare=1")
    answers = page.locator(".answer")
    expect(answers).to_have_count(2)
    expect(answers.nth(0).get_by_role("heading")).to_have_text("embeddings 0")
    expect(answers.nth(0)).to_contain_text(lacks["detail"])
    expect(answers.nth(1).locator(".card")).to_have_count(24)
    expect(page.locator("#status")).to_have_text("24 neighbors")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_role("button", name="Show more neighbors").click()
    expect(answers.nth(1).locator(".card")).to_have_count(48)
    page.unroute("**/api/neighbors?*store=0*")
    page.route("**/api/neighbors?*", lambda route: route.fulfill(status=404, json=lacks))
    page.goto(f"{site.url}/?view=neighbors&query=3&by=a2a&compare=1")
    expect(page.get_by_role("alert")).to_have_text(re.compile(lacks["detail"]))


# -- The map --


def map_point(page: Page, site: Site, side: str, number: int) -> tuple[float, float]:
    """Where the point lies on its canvas."""
    point = ask(site, "/api/map")[side][number]
    box = page.locator(f"#map-{side}").bounding_box()
    inside = min(box["width"], box["height"]) - 2 - 2 * MAP_MARGIN  # 1 pixel of border on each side
    corner = [(box[length] - inside) / 2 for length in ("width", "height")]
    return corner[0] + point[0] * inside, corner[1] + point[1] * inside


def lonely_point(found: dict, side: str) -> int:
    """The number of the point that is farthest from its nearest other one, among those with both sides."""
    points = found[side]

    def room(i: int) -> float:
        x, y = points[i]
        return min((x - p[0]) ** 2 + (y - p[1]) ** 2 for j, p in enumerate(points) if p is not None and j != i)

    return max((i for i in range(len(points)) if found["video"][i] and found["audio"][i]), key=room)


def ink(page: Page, side: str) -> str:
    return page.locator(f"#map-{side}").evaluate("canvas => canvas.toDataURL()")


@pytest.mark.parametrize("side", ["video", "audio"])
def test_map_point_lights_up_in_both_and_opens(side: str, open_page: Open, site: Site) -> None:
    page = open_page("/?view=map")
    expect(page.locator("#map-note")).not_to_be_empty()
    found = ask(site, "/api/map")
    number = lonely_point(found, side)
    before = {each: ink(page, each) for each in ("video", "audio")}
    x, y = map_point(page, site, side, number)
    page.locator(f"#map-{side}").hover(position={"x": x, "y": y})
    expect(page.locator("#map-clip .card")).to_have_attribute("data-id", str(found["ids"][number]))
    expect(page.locator("#map-clip img").first).to_be_visible()
    assert all(ink(page, each) != before[each] for each in before)
    page.locator(f"#map-{side}").click(position={"x": x, "y": y})
    expect(page.get_by_role("heading", level=1)).to_contain_text("Neighbors of")
    assert f"query={found['ids'][number]}" in page.url


def test_map_by_keyboard(open_page: Open, site: Site) -> None:
    page = open_page("/?view=map")
    expect(page.locator("#map-note")).not_to_be_empty()
    found = ask(site, "/api/map")
    canvas = page.locator("#map-video")
    canvas.press("ArrowRight")
    said = page.locator("#map-said")
    expect(said).to_contain_text("train/")
    first = said.text_content()
    start = found["video"][found["ids"].index(int(page.locator("#map-clip .card").get_attribute("data-id")))]
    key, axis, sign = ("ArrowRight", 0, 1) if start[0] < 0.5 else ("ArrowLeft", 0, -1)
    canvas.press(key)
    expect(said).not_to_have_text(first)
    chosen = int(page.locator("#map-clip .card").get_attribute("data-id"))
    assert sign * (found["video"][found["ids"].index(chosen)][axis] - start[axis]) > 0
    canvas.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Neighbors of")
    assert f"query={chosen}" in page.url


def test_map_legend_highlights_in_both(open_page: Open) -> None:
    page = open_page("/?view=map")
    expect(page.locator("#legend button")).to_have_count(2)
    before = [ink(page, side) for side in ("video", "audio")]
    page.locator("#legend button").first.click()
    expect(page.locator("#legend button").first).to_have_attribute("aria-pressed", "true")
    assert all(ink(page, side) != old for side, old in zip(("video", "audio"), before, strict=True))
    page.get_by_role("button", name="by cluster").click()
    expect(page.get_by_role("heading", name="Clusters")).to_be_visible()
    assert page.locator("#legend button").count() > 1


def test_map_legend_counts_clips_without_a_label(open_page: Open, site: Site) -> None:
    found = ask(site, "/api/map")
    found["labels"][:7] = [-1] * 7
    page = open_page()
    page.route("**/api/map*", lambda route: route.fulfill(json=found))
    page.get_by_role("link", name="Map").click()
    expect(page.locator("#legend li")).to_have_count(3)
    expect(page.locator("#legend li").last).to_have_text("without a label: 7")


def test_map_of_many_labels_leaves_the_rest_gray(open_page: Open, site: Site) -> None:
    found = ask(site, "/api/map")
    found["label_names"] = [f"label {i:02d}" for i in range(20)]
    found["labels"] = [i % 20 for i in range(len(found["ids"]))]
    page = open_page()
    page.route("**/api/map*", lambda route: route.fulfill(json=found))
    page.get_by_role("link", name="Map").click()
    expect(page.locator("#legend button")).to_have_count(20)
    expect(page.locator("#legend .swatch.rest")).to_have_count(8)
    before = ink(page, "audio")
    page.locator("#legend button").nth(19).click()
    expect(page.locator("#legend button").nth(19)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#legend button").nth(19)).to_be_focused()
    assert ink(page, "audio") != before


def test_umap_is_asked_where_it_is_offered(open_page: Open, site: Site) -> None:
    about, found = ask(site, "/api/about"), ask(site, "/api/map")
    page = open_page("/?name=no such clip")
    page.route("**/api/map*", lambda route: route.fulfill(json=found | {"note": route.request.url}))
    page.route("**/api/about", lambda route: route.fulfill(json=about))
    for offered in (False, True):
        about["umap"] = offered
        page.goto(f"{site.url}/?view=map")
        button = page.get_by_role("button", name="UMAP")
        expect(button).to_have_attribute("aria-disabled", str(not offered).lower())
        button.click(force=True)
        expect(page.locator("#map-note")).to_contain_text("by=umap" if offered else "by=pca")
        assert page.url.endswith("map=umap") == offered


def test_pointing_at_one_of_many_points_draws_none_anew(open_page: Open, site: Site) -> None:
    found = ask(site, "/api/map")
    many = 5000
    for name in ("ids", "labels", "clusters", "video", "audio"):
        found[name] = (found[name] * many)[:many]
    for i in range(many):  # spread, so that pointing is at many points
        for side in ("video", "audio"):
            found[side][i] = [(i * 0.618034) % 1, (i * 0.754878) % 1]
    page = open_page()
    page.route("**/api/map*", lambda route: route.fulfill(json=found | {"of": many}))
    page.get_by_role("link", name="Map").click()
    expect(page.locator("#status")).to_have_text("5,000 of 5,000 clips")
    drawn = page.locator("#map-video").evaluate(
        """(canvas) => {
          const drawn = { fill: 0, stroke: 0, drawImage: 0 };
          for (const name of Object.keys(drawn)) {
            const real = CanvasRenderingContext2D.prototype[name];
            CanvasRenderingContext2D.prototype[name] = function (...values) {
              drawn[name] += 1;
              return real.apply(this, values);
            };
          }
          const { x, y } = canvas.getBoundingClientRect();
          for (let step = 0; step < 60; step += 1) {
            canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: x + 20 + 5 * step, clientY: y + 99 }));
          }
          return drawn;
        }"""
    )
    assert drawn["fill"] == 0  # no point is drawn again: their picture is copied, and a ring is drawn on each side
    assert 0 < drawn["stroke"] == 2 * drawn["drawImage"] <= 4 * 60


# -- Everybody --


def test_keyboard_alone_from_the_start_to_neighbors(open_page: Open) -> None:
    page = open_page()
    expect(cards(page)).to_have_count(PAGE)
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(cards(page).first.locator(".pick")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(cards(page).nth(1).locator(".pick")).to_be_focused()
    page.keyboard.press("ArrowDown")
    below = cards(page).filter(has=page.locator(".pick:focus"))
    assert below.bounding_box()["x"] == cards(page).nth(1).bounding_box()["x"]
    page.keyboard.press("Enter")
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_contain_text("Neighbors of")
    expect(heading).to_be_focused()
    for _ in range(6):  # the play button of the query, then the ways
        page.keyboard.press("Tab")
        if focused(page) == "video → video":
            break
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="video → video")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="video → video")).to_be_focused()
    expect(page.locator("#status")).to_contain_text("neighbors")


VIEWS = {
    "clips": "/",
    "neighbors": "/?view=neighbors&query=3&by=v2a",
    "agreement": "/?view=neighbors&query=3&by=agreement",
    "compared": "/?view=neighbors&query=3&by=v2v&compare=1",
    "map": "/?view=map",
}


@pytest.mark.parametrize("width", [360, 800, 1180])
@pytest.mark.parametrize("name", ["clips", "agreement", "map"])
def test_long_names_need_no_sideways_scroll(name: str, width: int, open_page: Open) -> None:
    def lengthen(route: Route) -> None:
        text = json.dumps(route.fetch().json())
        long = text.replace('"0"', json.dumps("swaying-star_" * 9)).replace("train/0/", "a-folder-of-clips/" * 7)
        assert long != text or "/api/tags" in route.request.url
        route.fulfill(body=long, content_type="application/json")

    page = open_page("/?view=map&query=3", viewport={"width": width, "height": 740})
    page.route("**/api/**", lengthen)
    page.goto(page.url.split("/?")[0] + (VIEWS[name] + "&query=3" if name == "map" else VIEWS[name]))
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", VIEWS)
def test_phone_needs_no_sideways_scroll(name: str, open_page: Open) -> None:
    page = open_page(VIEWS[name], viewport={"width": 360, "height": 740}, has_touch=True, device_scale_factor=2)
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if name == "compared":
        first, second = (page.locator(".answer").nth(i).bounding_box() for i in (0, 1))
        assert first["y"] + first["height"] <= second["y"]
    photograph(page, f"{name}-phone")
    if name == "clips":  # a finger cannot hover
        cards(page).first.get_by_role("button", name="Play").tap()
        plays_on(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", VIEWS)
def test_no_accessibility_finding(name: str, scheme: str, open_page: Open) -> None:
    page = open_page(VIEWS[name], color_scheme=scheme)
    settle(page)
    photograph(page, f"{name}-{scheme}")
    if name == "map":
        page.locator("#map-video").press("ArrowRight")
        expect(page.locator("#map-clip .card")).to_be_visible()
    found = Axe().run(page).response["violations"]
    told = [(each["impact"], each["id"], [node["html"][:120] for node in each["nodes"][:3]]) for each in found]
    assert told == []


def photograph(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
