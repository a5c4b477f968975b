// The form: from settings to a request and back, and what it would cost.
import { Refusal, get, post } from "./service.js";

const $ = (id) => document.getElementById(id);
const models = new Map();
let picture = null;        // a data URL
let base = null;           // a video whose picture is kept
let planned = null;        // aborts the last question for a plan

const noPicture = "data:image/png;base64,iVBORw0KGgo=";
const otherSize = "other";

export const model = () => models.get($("model").value);
export const takesPictures = () => [...models.values()].some((model) => model.takes_image);

// MARK: Models

export async function loadModels() {
    const before = $("model").value;
    models.clear();
    for (const model of (await get("/v1/models")).data) models.set(model.id, model);
    $("model").replaceChildren(...[...models.keys()].map((id) => new Option(id)));
    if (models.has(before)) $("model").value = before;
    else chooseModel();
    $("make").disabled = models.size === 0;
    $("models").replaceChildren(...[...models.values()].map((model) => {
        const item = document.createElement("li");
        item.textContent = `${model.id}: ${model.takes_image ? "from a picture and text" : "from text"}, `
            + (model.is_loaded ? "loaded" : "not loaded yet");
        return item;
    }));
    if (models.size === 0) $("models-help").open = true;
    $("picture-field").hidden = !takesPictures();
    const loras = (await get("/v1/loras")).data;
    $("lora").replaceChildren(new Option("none", ""), ...loras.map((lora) => new Option(lora.id)));
    return [...models.values()];
}

/** Puts the model's own values into the form. */
function chooseModel() {
    const chosen = model();
    if (!chosen) return;
    const { defaults, limits } = chosen;
    const [frameStep, heightStep, widthStep] = limits.multiple;
    const sizes = new Map([[`${defaults.width}x${defaults.height}`, "the model's"]]);
    sizes.set(`${defaults.height}x${defaults.width}`, "upright");
    const side = Math.round(Math.sqrt(defaults.width * defaults.height) / widthStep) * widthStep;
    sizes.set(`${side}x${side}`, "square");
    if (defaults.width >= 832)
        for (const [size, title] of [["832x480", "480p"], ["480x832", "480p upright"], ["1280x720", "720p"], ["720x1280", "720p upright"]])
            if (!sizes.has(size)) sizes.set(size, title);
    $("size").replaceChildren(
        ...[...sizes].map(([size, title]) => new Option(`${size.replace("x", " × ")}, ${title}`, size)),
        new Option("other …", otherSize));
    for (const [id, step, most, value] of [
        ["width", widthStep, limits.largest[2], defaults.width],
        ["height", heightStep, limits.largest[1], defaults.height],
        ["frames", frameStep, limits.max_frames, defaults.num_frames],
    ]) Object.assign($(id), { step, min: id === "frames" ? 1 : step, max: most, value });
    $("steps").value = defaults.num_inference_steps;
    $("fps").value = defaults.fps;
    $("topk").placeholder = defaults.sla_topk;
    showSize();
}

function showSize() {
    const isOther = $("size").value === otherSize;
    for (const label of document.querySelectorAll(".other-size")) label.hidden = !isOther;
    const seconds = Number($("frames").value) / Number($("fps").value || 1);
    $("length").textContent = Number.isFinite(seconds) ? `${seconds.toFixed(1)} s` : "";
}

// MARK: Pictures

export async function usePicture(blob) {
    if (!blob?.type.startsWith("image/")) return tell("that is no picture", "picture");
    picture = await new Promise((done) => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result);
        reader.readAsDataURL(blob);
    });
    base = null;
    // A picture needs a model that takes one.
    if (!model()?.takes_image) {
        const other = [...models.values()].find((model) => model.takes_image);
        if (other) { $("model").value = other.id; chooseModel(); }
    }
    showPicture();
    cost();
}

function showPicture() {
    $("picture-shown").hidden = !picture;
    if (picture) $("picture-shown").src = picture;
    $("picture-remove").hidden = !picture && !base;
    $("picture-text").textContent = picture ? "The first picture; another can be dropped here"
        : base ? "The first picture is that of the repeated video"
        : "First picture: drop one here, paste it, or choose a file";
}

// MARK: Requests

const numbers = { frames: "num_frames", steps: "num_inference_steps", fps: "fps", topk: "sla_topk", sigma: "sigma_max", guidance: "guidance_scale", shift: "flow_shift", crf: "crf" };
const words = { attention: "attention_type", linears: "linears", precision: "precision", sampler: "sampler", negative: "negative_prompt" };

function request() {
    const body = { prompt: $("prompt").value.trim(), model: $("model").value };
    const isOther = $("size").value === otherSize;
    body.size = isOther ? `${$("width").value}x${$("height").value}` : $("size").value;
    for (const [id, name] of Object.entries(numbers)) if ($(id).value !== "") body[name] = Number($(id).value);
    for (const [id, name] of Object.entries(words)) if ($(id).value.trim() !== "") body[name] = $(id).value.trim();
    if ($("ode").checked) body.ode = true;
    // As text: a seed may have more digits than a number of JavaScript.
    if ($("seed").value.trim() !== "") body.seed = $("seed").value.trim();
    if ($("lora").value) body.lora = { name: $("lora").value, scale: Number($("strength").value || 1) };
    if (picture && model()?.takes_image) body.input_reference = picture;
    return body;
}

/** Puts the request of a video into the form. */
export function fill(video) {
    if (models.has(video.model)) { $("model").value = video.model; chooseModel(); }
    const { sampling, arithmetic, loras } = video.request;
    const set = (id, value) => { $(id).value = value ?? ""; };
    set("prompt", video.prompt);
    set("seed", video.seed);
    const isListed = [...$("size").options].some((option) => option.value === video.size);
    set("size", isListed ? video.size : otherSize);
    set("width", video.width); set("height", video.height);
    set("frames", video.num_frames); set("fps", video.fps); set("steps", video.num_inference_steps);
    set("attention", arithmetic?.attention); set("topk", arithmetic?.topK);
    set("linears", arithmetic?.linears === "stored" ? "" : arithmetic?.linears);
    set("precision", arithmetic?.precision === "bf16" ? "" : arithmetic?.precision);
    set("sampler", sampling?.solver === "rcm" ? "" : sampling?.solver);
    set("sigma", sampling?.sigmaMax); set("guidance", sampling?.guidance); set("shift", sampling?.shift);
    set("negative", video.request.negativePrompt);
    $("ode").checked = sampling?.ode === true;
    set("lora", loras?.[0]?.path); set("strength", loras?.[0]?.strength);
    picture = null;
    base = video.input_reference ? video.id : null;
    showPicture(); showSize(); cost();
    $("prompt").focus();
}

export function tell(text, param) {
    $("message").hidden = !text;
    $("message").textContent = text ?? "";
    const id = param === "size" ? ($("size").value === otherSize ? "width" : "size")
        : Object.entries({ ...numbers, ...words }).find(([, name]) => name === param)?.[0] ?? param;
    for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    if (text && id && $(id)) $(id).setAttribute("aria-invalid", "true");
}

async function submit() {
    if ($("prompt").value.trim() === "") {
        tell("Say what the video shows.", "prompt");
        return $("prompt").focus();
    }
    $("make").disabled = true;
    try {
        await post(base ? `/v1/videos/${base}/remix` : "/v1/videos", request());
        tell(null);
    } catch (error) {
        tell(error instanceof Refusal ? error.message : "The service does not answer.", error.param);
    }
    $("make").disabled = models.size === 0;
}

// MARK: Costs

const duration = (seconds) => seconds < 1 ? "under a second" : seconds < 90 ? `about ${Math.round(seconds)} s`
    : seconds < 5400 ? `about ${Math.round(seconds / 60)} min` : `about ${(seconds / 3600).toFixed(1)} h`;
export const memory = (bytes) => bytes < 2 ** 30 ? `${Math.round(bytes / 2 ** 20)} MiB` : `${(bytes / 2 ** 30).toFixed(1)} GiB`;

let timer = null;
/** Asks what the request would take, a moment after the last change. */
export function cost() {
    clearTimeout(timer);
    timer = setTimeout(plan, 250);
}

async function plan() {
    if (models.size === 0) return;
    planned?.abort();
    planned = new AbortController();
    const body = request();
    const isEmpty = body.prompt === "";
    if (isEmpty) body.prompt = "a ball";
    if ((body.input_reference || base || model()?.takes_image)) body.input_reference = noPicture;
    try {
        const plan = await post("/v1/videos/plan", body, planned.signal);
        const waits = plan.queue_seconds >= 1 ? `, after ${duration(plan.queue_seconds)} of waiting` : "";
        $("cost").textContent = `${duration(plan.seconds)}, ${memory(plan.peak_memory_bytes)} of memory${waits}`
            + (plan.streams_weights ? "; weights do not all fit and are read again in each step" : "")
            + (model()?.is_loaded ? "" : "; the model is loaded first");
        $("notices").replaceChildren(...(isEmpty ? [] : plan.notices).map((notice) => {
            const item = document.createElement("li");
            item.textContent = notice;
            return item;
        }));
        tell(null);
    } catch (error) {
        if (error.name === "AbortError") return;
        $("cost").textContent = "";
        $("notices").replaceChildren();
        if (error instanceof Refusal && error.status !== 401) tell(error.message, error.param);
    }
}

// MARK: Events of the form

$("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("ask").addEventListener("input", (event) => {
    if (event.target.id === "model") chooseModel();
    showSize();
    cost();
});
$("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("textarea, input:not([type=checkbox])")) { event.preventDefault(); $("prompt").focus(); }
});
$("picture").addEventListener("change", () => { if ($("picture").files[0]) usePicture($("picture").files[0]); });
$("picture-remove").addEventListener("click", () => {
    picture = base = null;
    $("picture").value = "";
    showPicture(); cost();
});
for (const name of ["dragover", "dragleave", "drop"])
    document.addEventListener(name, (event) => {
        if (!takesPictures()) return;
        event.preventDefault();
        $("drop").classList.toggle("over", name === "dragover");
        if (name === "drop" && event.dataTransfer.files[0]) usePicture(event.dataTransfer.files[0]);
    });
document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
    if (file && takesPictures()) usePicture(file);
});
