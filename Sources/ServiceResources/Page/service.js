// What the page asks of the service, and what the service tells.

let key = localStorage.getItem("key") ?? "";
export const hasKey = () => key !== "";
export function useKey(text) {
    key = text.trim();
    if (key) localStorage.setItem("key", key); else localStorage.removeItem("key");
}

/** What the service answered where it did not do what it was asked. */
export class Refusal extends Error {
    constructor(status, error) {
        super(error?.message ?? `the service answered ${status}`);
        this.status = status;
        this.param = error?.param ?? null;
    }
}

async function ask(path, options = {}) {
    const headers = { ...options.headers };
    if (key) headers.authorization = `Bearer ${key}`;
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) return answer;
    const body = await answer.json().catch(() => ({}));
    throw new Refusal(answer.status, body.error);
}

export const get = async (path) => (await ask(path)).json();
export const remove = async (path) => (await ask(path, { method: "DELETE" })).json();
export const post = async (path, body = {}, signal) =>
    (await ask(path, {
        method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
    })).json();

/** An address for src and href: pages cannot send a key with those, so a file that needs one is fetched. */
export async function address(path) {
    if (!key) return path;
    return URL.createObjectURL(await (await ask(path)).blob());
}

/** Events of all videos, for ever: `take(name, data)`; `connected(true | false | Refusal)` as the stream comes and goes. */
export async function listen(take, connected) {
    for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
        try {
            const answer = await ask("/v1/events");
            await connected(true);
            pause = 500;
            await read(answer.body, take);
            connected(false);
        } catch (error) {
            connected(error instanceof Refusal ? error : false);
            if (error.status === 401) return;
        }
        await new Promise((done) => setTimeout(done, pause));
    }
}

async function read(body, take) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
            let name = null, data = "";
            for (const line of event.split("\n")) {
                if (line.startsWith("event: ")) name = line.slice(7);
                else if (line.startsWith("data: ")) data += line.slice(6);
            }
            if (name) take(name, JSON.parse(data));
        }
    }
}
