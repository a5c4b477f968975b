"""The page in a real browser: Debian's chromium without a screen, driven by playwright. Pictures of it go to the folder that is named."""
import os
import shutil
import sys
import tempfile

from playwright.sync_api import expect, sync_playwright

from service import Service

SHOTS = sys.argv[1] if len(sys.argv) > 1 else None
TEXT = "A small red sphere bounces on a checkered floor."
KEY = "a-key-of-the-page-test"


def picture(page, name):
    if SHOTS:
        os.makedirs(SHOTS, exist_ok=True)
        page.screenshot(path=os.path.join(SHOTS, f"{name}.png"), full_page=True)


def quiet(page):
    """Whatever the browser complains of fails the test."""
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(
        f"{line.text} {line.location.get('url', '')}") if line.type == "error" else None)
    return complaints


def ask(page, prompt, frames, seed=None):
    page.locator("#prompt").fill(prompt)
    page.locator("#frames").fill(str(frames))
    page.locator("#seed").fill("" if seed is None else str(seed))
    page.keyboard.press("Tab")
    page.locator("#prompt").press("Control+Enter")


def work(browser, url):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    complaints = quiet(page)
    arrived = set()
    page.on("requestfinished", lambda request: arrived.add(request.url))
    page.goto(url)
    expect(page.locator("#state")).to_contain_text("nothing is loaded")
    expect(page.locator("#model")).to_have_value("nano")
    # No served model takes a picture.
    expect(page.locator("#picture-field")).to_be_hidden()
    page.locator("#prompt").fill(TEXT)
    expect(page.locator("#cost")).to_contain_text("of memory")
    picture(page, "1-empty")

    # Its cost follows the settings.
    cheap = page.locator("#cost").inner_text()
    page.locator("#size").select_option("other")
    page.locator("#width").fill("512")
    page.locator("#height").fill("288")
    expect(page.locator("#cost")).not_to_have_text(cheap)
    # What cannot be made is said before it is asked for, at its field.
    page.locator("#width").fill("100")
    expect(page.locator("#message")).to_contain_text("multiple of 16")
    picture(page, "2-refused")
    complaints[:] = [line for line in complaints if "status of 400" not in line]
    page.locator("#size").select_option("256x144")
    expect(page.locator("#message")).to_be_hidden()

    # One runs and shows what it makes, one waits and is cancelled.
    ask(page, TEXT, 33, 7)
    ask(page, "A big shiny violet ball bounces on a green lawn.", 33, 8)
    running = page.locator('#queue > li[data-status="in_progress"]')
    waiting = page.locator('#queue > li[data-status="queued"]')
    expect(running).to_have_count(1, timeout=60_000)
    expect(waiting).to_have_count(1)
    shown = running.locator(".picture img")
    expect(shown).to_be_visible(timeout=120_000)
    first = shown.get_attribute("src")
    picture(page, "3-running")
    waiting.get_by_role("button", name="Cancel").click()
    expect(page.locator('#gallery > li[data-status="cancelled"]')).to_have_count(1)
    expect(shown).not_to_have_attribute("src", first, timeout=120_000)

    # It is finished, and plays.
    done = page.locator('#gallery > li[data-status="completed"]')
    expect(done).to_have_count(1, timeout=240_000)
    expect(page.locator("#state")).to_contain_text("nano loaded")
    player = done.locator("video")
    played = player.evaluate(
        """async (video) => {
            await video.play();
            await new Promise((done) => setTimeout(done, 700));
            return [video.videoWidth, video.videoHeight, video.currentTime];
        }""")
    assert played[:2] == [256, 144] and played[2] > 0.2, played
    expect(done).to_contain_text("seed 7")
    with page.expect_download() as download:
        done.get_by_role("link", name="Download").click()
    assert os.path.getsize(download.value.path()) > 1000
    done.get_by_text("Request", exact=True).click()
    expect(done.locator("pre")).to_contain_text('"seed": 7')
    picture(page, "4-finished")

    # Again with another seed; its request can be changed; it can go.
    done.get_by_role("button", name="Vary").click()
    expect(done).to_have_count(2, timeout=240_000)
    expect(done.first).not_to_contain_text("seed 7,")
    done.last.get_by_role("button", name="Change").click()
    expect(page.locator("#seed")).to_have_value("7")
    expect(page.locator("#prompt")).to_be_focused()
    # The browser would complain of a thumbnail that it still waits for when its video goes.
    thumbnail = f"/v1/videos/{done.first.get_attribute('data-id')}/content?variant=thumbnail"
    for _ in range(600):
        if url + thumbnail in arrived:
            break
        page.wait_for_timeout(100)
    assert url + thumbnail in arrived, arrived
    done.first.get_by_role("button", name="Delete").click()
    expect(done).to_have_count(1)

    # After a reload everything is as it was.
    page.reload()
    expect(done).to_have_count(1)
    expect(page.locator('#gallery > li[data-status="cancelled"]')).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()
    assert not complaints, complaints
    page.close()


def small(browser, url):
    """A phone, in the dark."""
    page = browser.new_page(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, has_touch=True, color_scheme="dark")
    complaints = quiet(page)
    page.goto(url)
    expect(page.locator('#gallery > li[data-status="completed"]')).to_have_count(1)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, f"the page is {width} pixels wide"
    small_ones = page.evaluate(
        """[...document.querySelectorAll("button, select, input:not([type=checkbox]):not([type=file])")]
            .filter((one) => one.offsetParent && one.offsetHeight < 40).map((one) => one.outerHTML)""")
    assert not small_ones, small_ones
    picture(page, "5-phone")
    assert not complaints, complaints
    page.close()


def locked(browser, url):
    """A service that asks for a key."""
    page = browser.new_page()
    page.goto(url)
    expect(page.locator("#key")).to_be_focused()
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_value("nano")
    ask(page, TEXT, 5)
    done = page.locator('#gallery > li[data-status="completed"]')
    expect(done).to_have_count(1, timeout=240_000)
    page.wait_for_function("document.querySelector('#gallery video').src.startsWith('blob:')")
    done.locator("video").evaluate("(video) => video.play()")
    page.close()


def pictures(browser, url):
    """A model that takes a picture, as far as the page is concerned: dropped, or the last frame of a video."""
    page = browser.new_page()
    complaints = quiet(page)
    asked = []

    def models(route):
        answer = route.fetch()
        list = answer.json()
        list["data"].append({**list["data"][0], "id": "moves", "takes_image": True})
        route.fulfill(response=answer, json=list)

    def videos(route):
        if route.request.method == "GET":
            return route.continue_()
        asked.append(route.request.post_data_json)
        route.fulfill(json={"seconds": 1, "queue_seconds": 0, "peak_memory_bytes": 1 << 30, "notices": []})

    page.route("**/v1/models", models)
    page.route("**/v1/videos", videos)
    page.route("**/v1/videos/plan", lambda route: route.fulfill(
        json={"seconds": 1, "queue_seconds": 0, "peak_memory_bytes": 1 << 30, "streams_weights": False, "notices": []}))
    page.goto(url)
    expect(page.locator("#picture-field")).to_be_visible()
    dropped = page.evaluate_handle(
        """async () => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
            const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
            const transfer = new DataTransfer();
            transfer.items.add(new File([blob], "first.png", { type: "image/png" }));
            return transfer;
        }""")
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    # The picture chooses a model that takes one.
    expect(page.locator("#model")).to_have_value("moves")
    expect(page.locator("#picture-shown")).to_be_visible()
    ask(page, TEXT, 9)
    page.wait_for_function("true")
    expect(page.locator("#make")).to_be_enabled()
    assert asked[-1]["model"] == "moves" and asked[-1]["input_reference"].startswith("data:image/png;base64,"), asked
    page.locator("#picture-remove").click()
    expect(page.locator("#picture-shown")).to_be_hidden()
    page.locator('#gallery > li[data-status="completed"]').first.get_by_role("button", name="Use as start").click()
    expect(page.locator("#picture-shown")).to_be_visible()
    size = page.locator("#picture-shown").evaluate("(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert size == [256, 144], size
    picture(page, "6-pictures")
    assert not complaints, complaints
    page.close()


def nothing(browser, url):
    """No model at all: the page says how to get one."""
    page = browser.new_page()
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": []}))
    page.goto(url)
    expect(page.locator("#state")).to_contain_text("no model is served")
    expect(page.locator("#models-help")).to_contain_text("turbodiffusion serve --model")
    expect(page.locator("#models-help p").last).to_be_visible()
    expect(page.locator("#make")).to_be_disabled()
    page.close()


def main():
    folder = tempfile.mkdtemp()
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(
                executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"])
            with Service(os.path.join(folder, "open")) as service:
                work(browser, service.url)
                small(browser, service.url)
                pictures(browser, service.url)
                nothing(browser, service.url)
                assert service.stop() == 0
            keys = os.path.join(folder, "keys")
            with open(os.open(keys, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
                file.write(KEY + "\n")
            with Service(os.path.join(folder, "locked"), "--api-key-file", keys) as service:
                locked(browser, service.url)
            browser.close()
        print("the page: all well")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
