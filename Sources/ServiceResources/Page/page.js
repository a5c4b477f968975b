// The page: what waits, what is made, what has been made.
import { Refusal, address, get, hasKey, listen, post, remove, useKey } from "./service.js";
import { cost, fill, loadModels, memory, takesPictures, tell, usePicture } from "./form.js";

const $ = (id) => document.getElementById(id);
const cards = new Map();    // id → { item, video }
const isOver = (video) => !["queued", "in_progress"].includes(video.status);
let last = null;            // the oldest video that was listed

function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
}

function button(title, action, hint) {
    return element("button", {
        type: "button", textContent: title, title: hint ?? "",
        onclick: async (event) => {
            event.target.disabled = true;
            try { await action(); } catch (error) {
                tell(error instanceof Refusal ? error.message : "The service does not answer.");
            }
            event.target.disabled = false;
        },
    });
}

// MARK: One video

function show(video, atEnd = false) {
    const known = cards.get(video.id);
    if (known && known.video.status === video.status) {
        known.video = { ...known.video, ...video };
        return refresh(known);
    }
    const preview = known?.item.querySelector(".picture img");
    const item = isOver(video) ? finishedCard(video) : waitingCard(video, preview);
    item.dataset.id = video.id;
    item.dataset.status = video.status;
    known?.item.remove();
    const card = { item, video };
    cards.set(video.id, card);
    if (!isOver(video)) {
        // What runs comes first, then what waits in its order.
        if (video.status === "in_progress") $("queue").prepend(item); else $("queue").append(item);
    } else if (atEnd) $("gallery").append(item);
    else $("gallery").prepend(item);
    refresh(card);
    showEmpty();
}

function showEmpty() {
    $("queue-empty").hidden = $("queue").childElementCount > 0;
    $("gallery-empty").hidden = $("gallery").childElementCount > 0;
}

const facts = (video) => [
    video.model, video.size.replace("x", " × "), `${video.num_frames} frames`,
    `${video.num_inference_steps} step${video.num_inference_steps === 1 ? "" : "s"}`, `seed ${video.seed}`,
];

function waitingCard(video, preview) {
    const picture = element("div", { className: "picture" }, preview ?? "no picture yet");
    return element("li", {}, picture, element("div", { className: "about" },
        element("p", { className: "words", textContent: video.prompt }),
        element("progress", { max: 100, ariaLabel: "done" }),
        element("p", { className: "facts now" }),
        element("p", { className: "facts", textContent: facts(video).join(", ") }),
        element("div", { className: "actions" },
            button("Cancel", () => post(`/v1/videos/${video.id}/cancel`)))));
}

function refresh({ item, video }) {
    const now = item.querySelector(".now");
    if (!now) return;
    item.querySelector("progress").value = video.progress;
    const left = video.left != null && video.left >= 1 ? `, ${Math.round(video.left)} s left` : "";
    now.textContent = video.status === "queued"
        ? `waits${video.queue_position ? `, number ${video.queue_position}` : ""}`
        : `${video.stage ?? "begins"}, ${video.progress} %${left}`;
}

function finishedCard(video) {
    const picture = element("div", { className: "picture" });
    const about = element("div", { className: "about" },
        element("p", { className: "words", textContent: video.prompt, title: video.prompt }));
    const path = `/v1/videos/${video.id}`;
    const actions = element("div", { className: "actions" });
    if (video.status === "completed") {
        const player = element("video", { controls: true, loop: true, muted: true, playsInline: true, preload: "none" });
        picture.append(player);
        address(`${path}/content?variant=thumbnail`).then((url) => { player.poster = url; }, () => {});
        address(`${path}/content`).then((url) => { player.src = url; }, () => {});
        const made = [`${video.inference_time_s?.toFixed(1)} s`];
        if (video.peak_memory_mb) made.push(memory(video.peak_memory_mb * 2 ** 20));
        about.append(element("p", { className: "facts", textContent: [...facts(video), ...made].join(", ") }));
        const link = element("a", { textContent: "Download", download: `${video.id}.mp4`, href: `${path}/content` });
        if (hasKey()) link.addEventListener("click", async (event) => {
            if (link.href.startsWith("blob:")) return;
            event.preventDefault();
            link.href = await address(`${path}/content`);
            link.click();
        });
        actions.append(link);
    } else {
        picture.textContent = video.status;
        if (video.error) about.append(element("p", { className: "error", textContent: video.error.message }));
        about.append(element("p", { className: "facts", textContent: facts(video).join(", ") }));
    }
    const again = (seed) => post(`${path}/remix`, { prompt: video.prompt, seed });
    actions.append(
        button("Again", () => again(`${video.seed}`), "The same request, with the same seed"),
        button("Vary", () => again(`${crypto.getRandomValues(new Uint32Array(1))[0]}`), "The same request with another seed"),
        button("Change", () => fill(video), "Put its request into the form"));
    if (video.status === "completed" && takesPictures())
        actions.append(button("Use as start", () => lastFrame(picture.querySelector("video")).then(usePicture),
            "Its last frame becomes the first picture of the next video"));
    actions.append(button("Delete", () => remove(path)));
    about.append(actions, element("details", {},
        element("summary", { textContent: "Request" }),
        element("pre", { textContent: JSON.stringify(video.request, null, 2), tabIndex: 0 })));
    return element("li", {}, picture, about);
}

/** The last picture of a video, as a file. */
async function lastFrame(player) {
    const copy = element("video", { muted: true, preload: "auto", src: player.src });
    await new Promise((done, fail) => { copy.onloadeddata = done; copy.onerror = () => fail(new Refusal(0, { message: "The video cannot be read." })); });
    await new Promise((done) => { copy.onseeked = done; copy.currentTime = Math.max(0, copy.duration - 0.01); });
    const canvas = element("canvas", { width: copy.videoWidth, height: copy.videoHeight });
    canvas.getContext("2d").drawImage(copy, 0, 0);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function forget(id) {
    const item = cards.get(id)?.item;
    const player = item?.querySelector("video");
    if (player) {
        // A player that is only taken off the page goes on loading.
        for (const name of ["poster", "src"]) {
            URL.revokeObjectURL(player[name]);
            player.removeAttribute(name);
        }
        player.load();
    }
    item?.remove();
    cards.delete(id);
    showEmpty();
}

// MARK: Events

function take(name, data) {
    const card = cards.get(data.id);
    switch (name) {
    case "video": case "completed": case "failed": case "cancelled":
        show(data);
        // The first video has brought its model with it.
        if (name === "completed") refreshModels().catch(() => {});
        break;
    case "progress":
        if (!card || isOver(card.video)) break;
        Object.assign(card.video, { progress: data.progress, stage: data.title, left: data.estimated_seconds_left });
        refresh(card);
        break;
    case "preview": {
        if (!card || isOver(card.video)) break;
        const picture = card.item.querySelector(".picture");
        if (!picture.querySelector("img")) picture.replaceChildren(element("img"));
        Object.assign(picture.firstChild, { src: data.image, alt: `After step ${data.step} of ${data.of}` });
        break;
    }
    case "deleted": forget(data.id); break;
    case "queue":
        showState(data);
        // Everyone has moved up; the service tells each position only when asked.
        if (data.queued > 0) positions();
        break;
    }
}

async function refreshModels() {
    models = await loadModels();
    showState();
    cost();
}

let asking = null;
function positions() {
    clearTimeout(asking);
    asking = setTimeout(async () => {
        const list = await get("/v1/videos?status=queued&limit=100&order=asc").catch(() => null);
        for (const video of list?.data ?? []) if (cards.has(video.id)) show(video);
    }, 300);
}

let queue = { queued: 0, running: 0 };
let models = [];
function showState(data = queue) {
    queue = data;
    const loaded = models.filter((model) => model.is_loaded).map((model) => model.id);
    const what = models.length === 0 ? "no model is served: see Models"
        : loaded.length ? `${loaded.join(", ")} loaded` : "nothing is loaded: the first video brings its model";
    const work = queue.running + queue.queued === 0 ? "idle" : `${queue.running} running, ${queue.queued} waiting`;
    $("state").textContent = `${work}; ${what}`;
}

async function older() {
    const after = last ? `&after=${last}` : "";
    const page = await get(`/v1/videos?limit=24${after}`);
    for (const video of page.data) if (!cards.has(video.id)) show(video, true);
    last = page.last_id ?? last;
    $("older").hidden = !page.has_more;
}

async function connected(how) {
    $("key-form").hidden = how?.status !== 401;
    if (how === true) {
        // What was missed meanwhile is told anew.
        for (const id of [...cards.keys()]) forget(id);
        last = null;
        await refreshModels();
        await older();
    } else {
        $("state").textContent = how?.status === 401 ? "A key is needed"
            : how ? how.message : "The service does not answer; trying again …";
        if (how?.status === 401) $("key").focus();
    }
}

$("older").addEventListener("click", () => older().catch(() => {}));
$("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey($("key").value);
    listen(take, connected);
});
showEmpty();
listen(take, connected);
