// A prompt, and what becomes of it.
const list = document.getElementById("videos");
const message = document.getElementById("message");
const items = new Map();

function item(id) {
    if (!items.has(id)) {
        const li = document.createElement("li");
        li.append(document.createElement("p"));
        list.prepend(li);
        items.set(id, li);
    }
    return items.get(id);
}

function show(video) {
    const li = item(video.id);
    li.firstChild.textContent = `${video.prompt}: ${video.status} ${video.status === "in_progress" ? video.progress + " %" : ""}`;
    if (video.status === "completed" && !li.querySelector("video")) {
        li.querySelector("img")?.remove();
        const player = document.createElement("video");
        player.controls = player.loop = true;
        player.src = `/v1/videos/${video.id}/content`;
        li.append(player);
    }
}

document.getElementById("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await fetch("/v1/videos", {
        method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ prompt: document.getElementById("prompt").value }),
    });
    const body = await answer.json();
    message.textContent = answer.ok ? "" : body.error.message;
});

const events = new EventSource("/v1/events");
for (const name of ["video", "completed", "failed", "cancelled"])
    events.addEventListener(name, (event) => show(JSON.parse(event.data)));
events.addEventListener("deleted", (event) => item(JSON.parse(event.data).id).remove());
events.addEventListener("preview", (event) => {
    const data = JSON.parse(event.data);
    const li = item(data.id);
    let image = li.querySelector("img");
    if (!image) {
        image = document.createElement("img");
        image.alt = "";
        image.width = 256;
        li.append(image);
    }
    image.src = data.image;
});
const done = await (await fetch("/v1/videos?limit=20&order=asc")).json();
for (const video of done.data ?? []) show(video);
