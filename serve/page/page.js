// The page of `serve`: pictures go to POST v1/predict, every answer becomes a card. No framework, no build step.
// What comes from the server or from a file's name is only ever set as text.

const TEXTS = {
  en: {
    title: "Image classifier",
    questionFew: "{classes}?",
    questionMany: "Which of {count} classes is it?",
    questionLabels: "Which of {count} classes are in it?",
    size: "looks at {size} × {size} pixels",
    accuracy: "accuracy {accuracy}",
    threshold: "marks classes from {threshold} up",
    otherLanguage: "中文",
    waysLabel: "Give pictures",
    dropHint: "Drop pictures anywhere on this page, paste one with {paste}, or",
    choose: "Choose pictures",
    camera: "Use the camera",
    take: "Take the picture",
    cancel: "Cancel",
    examples: "or try one of these",
    example: "Example: {name}",
    docs: "The interface for programs",
    noCamera: "The camera cannot be used: {reason}",
    folder: "A folder was left out. Open it and choose the pictures in it.",
    history: "This visit",
    clear: "Clear",
    working: "Looking at it …",
    unlike: "Unlike anything it was trained on",
    nearest: "Most similar: {class}",
    none: "None of its classes",
    others: "{count} others",
    othersEach: "{count} others, at most",
    spoken: "{name}: {answer}",
    again: "Try again",
    wrong: "Wrong? It is",
    wrongChoose: "…",
    kept: "Kept as {class}, to train on.",
    why: "Why?",
    whyLabel: "Show what speaks for {class} in {name}",
    whyPicture: "Yellow speaks for {class}, violet does not",
    busy: "The server is busy. Trying again in {seconds} s ({attempt} of {attempts}).",
    gone: "The server does not answer. Is it still running?",
    garbled: "The server's answer cannot be read (status {status}).",
    tokenLabel: "This server wants a token",
    tokenSend: "Use it",
    tokenWrong: "The server did not accept this token.",
    problem: "{detail}",
  },
  zh: {
    title: "图像分类",
    questionFew: "{classes}？",
    questionMany: "属于 {count} 个类别中的哪一个？",
    questionLabels: "含有 {count} 个类别中的哪些？",
    size: "输入 {size} × {size} 像素",
    accuracy: "准确率 {accuracy}",
    threshold: "标记概率不低于 {threshold} 的类别",
    otherLanguage: "English",
    waysLabel: "提供图片",
    dropHint: "把图片拖到页面任意位置，用 {paste} 粘贴，或者",
    choose: "选择图片",
    camera: "使用摄像头",
    take: "拍照",
    cancel: "取消",
    examples: "或者试试这些图片",
    example: "示例：{name}",
    docs: "供程序调用的接口",
    noCamera: "无法使用摄像头：{reason}",
    folder: "未处理文件夹。请打开它，选择其中的图片。",
    history: "本次访问",
    clear: "清空",
    working: "正在识别……",
    unlike: "与训练时见过的图片都不相似",
    nearest: "最接近的类别：{class}",
    none: "不属于任何类别",
    others: "其他 {count} 类",
    othersEach: "其他 {count} 类，均不超过",
    spoken: "{name}：{answer}",
    again: "重试",
    wrong: "不对？它是",
    wrongChoose: "……",
    kept: "已作为“{class}”保存，供训练使用。",
    why: "依据",
    whyLabel: "显示 {name} 中支持“{class}”的部分",
    whyPicture: "黄色部分支持“{class}”，紫色部分不支持",
    busy: "服务器繁忙，{seconds} 秒后重试（第 {attempt} 次，共 {attempts} 次）。",
    gone: "服务器没有响应。它还在运行吗？",
    garbled: "无法读取服务器的回答（状态码 {status}）。",
    tokenLabel: "此服务器需要令牌",
    tokenSend: "使用",
    tokenWrong: "服务器不接受此令牌。",
    problem: "服务器拒绝了请求（状态码 {status}）：{detail}",
    // The server's codes of what a visitor can meet; in English it says them itself.
    "empty-picture": "文件是空的，请换一张图片。",
    "not-a-picture": "不是 JPEG、PNG、GIF、WebP 或 BMP 图片，请换一个文件。",
    "picture-too-large": "图片的像素太多，超过了服务器的上限，请缩小后再试。",
    "damaged-picture": "图片已损坏、不完整或过于特殊，无法读取。请重新保存后再试，或换一张。",
    "body-too-large": "文件太大：一次最多 {limit} MiB。请缩小图片后再试。",
    "too-many-pictures": "图片太多：一次最多 {limit} 张。请分几次提交。",
    "too-busy": "服务器繁忙，请稍后重试。",
    "too-long": "用时太长，已中止。请检查网络，稍后重试。",
    "collection-full": "保存图片的文件夹已满，这张图片没有保存。请告诉服务器的管理者。",
    "not-kept": "服务器未能保存这张图片，原因见服务器的输出。请告诉服务器的管理者。",
    "not-classified": "服务器未能识别这张图片，原因见服务器的输出。请重试，或告诉服务器的管理者。",
  },
};
const PICTURES_PER_REQUEST = 16;
const BYTES_PER_REQUEST = 16 << 20; // A larger picture goes alone.
// In place of the browser's sign for a broken picture.
const EMPTY_PICTURE = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E";
const BARS = 10;
const CLASSES_IN_QUESTION = 4;
const ATTEMPTS = 3;

const $ = (id) => document.getElementById(id);
let model = null;

// --- Language ---------------------------------------------------------------------------------------------------------

// Browsers that keep no data for a page refuse its storage with an error.
const stored = (kind, key) => { try { return window[kind].getItem(key); } catch { return null; } };
const store = (kind, key, value) => { try { window[kind].setItem(key, value); } catch { /* forgotten on reload */ } };

let language = stored("localStorage", "language") ?? (/^zh\b/i.test(navigator.language) ? "zh" : "en");
if (!(language in TEXTS)) language = "en";

function say(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// Says why the server did not answer, in its own words where the page has none.
function sayProblem({ code, status, title, detail = title, limit }) {
  return say(code in TEXTS[language] ? code : "problem", { status, detail, limit });
}

function percent(share) {
  return new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 }).format(share);
}

function list(names, type) {
  return new Intl.ListFormat(language, { type }).format(names);
}

function renderPage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say(element.dataset.label));
  for (const picture of document.querySelectorAll("#examples img")) picture.alt = picture.title = say("example", picture.dataset);
  $("language").textContent = say("otherLanguage");
  $("language").lang = language === "zh" ? "en" : "zh-CN";
  $("drop-hint").textContent = say("dropHint", { paste: /Mac/.test(navigator.platform) ? "⌘V" : "Ctrl+V" });
  notify(notice);
  $("question").textContent = say("title");
  if (model) {
    const count = model.classes.length;
    const question = model.multi_label ? "questionLabels" : count > CLASSES_IN_QUESTION ? "questionMany" : "questionFew";
    const facts = [model.name, say("size", { size: model.input_size })];
    for (const share of ["accuracy", "threshold"]) {
      if (typeof model[share] === "number") facts.push(say(share, { [share]: percent(model[share]) }));
    }
    $("question").textContent = say(question, { count, classes: list(model.classes, "disjunction") });
    $("facts").textContent = facts.join(" · ");
  }
  document.title = $("question").textContent;
  cards.forEach(renderCard);
}

// Says `text()` below the buttons, until something else is to be said.
let notice = () => "";
function notify(text) {
  notice = text;
  $("notice").textContent = text();
}

$("language").addEventListener("click", () => {
  language = language === "en" ? "zh" : "en";
  store("localStorage", "language", language);
  renderPage();
});

// --- Asking the server ------------------------------------------------------------------------------------------------

// A request that came to nothing. `text` gives the reason in the language of the moment.
class Failure extends Error {
  constructor(text, status) {
    super(text());
    this.text = text;
    this.status = status;
    this.again = status === undefined || status === 429 || status >= 500;
  }
}

let token = stored("sessionStorage", "token");
let tokenGiven = null; // The promise that everybody waits for while the field is shown.

function askForToken() {
  tokenGiven ??= new Promise((given) => {
    $("token-hint").textContent = token ? say("tokenWrong") : "";
    $("token").hidden = false;
    $("token-field").focus();
    $("token").addEventListener("submit", (event) => {
      event.preventDefault();
      token = $("token-field").value;
      store("sessionStorage", "token", token);
      $("token").reset();
      $("token").hidden = true;
      $("choose").focus();
      tokenGiven = null;
      given();
    }, { once: true });
  });
  return tokenGiven;
}

// GETs `path`, or POSTs `body` to it, and returns the answer's JSON or picture. Asks for a token and waits for a busy server as needed;
// `waiting` receives the text that says so.
async function ask(path, body, waiting = () => {}) {
  for (let attempt = 1; ;) {
    const sent = token;
    let response;
    try {
      const headers = sent ? { Authorization: `Bearer ${sent}` } : {};
      response = await fetch(path, { method: body ? "POST" : "GET", body, headers });
    } catch {
      throw new Failure(() => say("gone"));
    }
    const { status } = response;
    if (status === 401) {
      if (sent === token) await askForToken();
    } else if ((status === 429 || status === 503) && attempt <= ATTEMPTS) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      const values = { seconds, attempt, attempts: ATTEMPTS };
      waiting(() => say("busy", values));
      await new Promise((over) => setTimeout(over, seconds * 1000));
      attempt += 1;
    } else {
      const isPicture = response.headers.get("Content-Type")?.startsWith("image/");
      const answer = await (isPicture ? response.blob() : response.json()).catch(() => null);
      if (response.ok && answer) return answer;
      throw new Failure(() => answer?.title ? sayProblem(answer) : say("garbled", { status }), status);
    }
  }
}

// --- Cards ------------------------------------------------------------------------------------------------------------

// Newest first. A card is { file, name, node, state, text, prediction, again, map, shown, kept }: `state` is working, answered
// or failed, `text` what there is to say about a card that works or has failed, `map` the explanation, `shown` whether it
// lies over the picture, and `kept` the class that it was kept as.
let cards = [];
let pending = [];
let sending = false;

function addPictures(files) {
  const added = Array.from(files, (file) => {
    const node = $("card").content.firstElementChild.cloneNode(true);
    const card = { file, name: file.name, node };
    const picture = node.querySelector("img");
    picture.onload = () => URL.revokeObjectURL(picture.src);
    picture.onerror = () => {
      URL.revokeObjectURL(picture.src);
      picture.src = EMPTY_PICTURE;
    };
    picture.src = URL.createObjectURL(file);
    node.querySelector(".again").addEventListener("click", () => enqueue([card]));
    node.querySelector(".why").addEventListener("click", () => explain(card));
    node.querySelector(".wrong select").addEventListener("change", ({ target }) => collect(card, target.value));
    return card;
  });
  if (added.length === 0) return;
  notify(() => "");
  cards.unshift(...added);
  $("cards").prepend(...added.map((card) => card.node));
  $("history").hidden = false;
  enqueue(added);
}

function update(card, change) {
  Object.assign(card, change);
  renderCard(card);
}

function renderCard({ node, name, state, text, prediction, again, map, shown, kept }) {
  const set = (selector, value) => { node.querySelector(selector).textContent = value; };
  node.className = `card ${state}`;
  node.setAttribute("aria-busy", state === "working");
  set(".name", name);
  node.querySelector(".name").title = name;
  set(".message", state === "working" ? text() : "");
  set(".reason", state === "failed" ? text() : "");
  set(".again", say("again"));
  node.querySelector(".again").hidden = !again;
  if (state !== "answered") return;
  node.classList.toggle("unlike", prediction.unlike === true);
  node.classList.toggle("many", model?.multi_label === true);
  set(".answer", prediction.unlike ? say("unlike") : list(prediction.classes, "conjunction") || say("none"));
  set(".nearest", say("nearest", { class: prediction.class }));
  node.querySelector(".wrong").hidden = !model?.collects || kept !== undefined;
  set(".ask", say("wrong"));
  const options = [new Option(say("wrongChoose"), ""), ...(model?.classes ?? []).map((name) => new Option(name))];
  node.querySelector(".wrong select").replaceChildren(...options);
  set(".kept", kept === undefined ? "" : say("kept", { class: kept }));
  set(".why", say("why"));
  node.querySelector(".why").ariaLabel = say("whyLabel", { class: prediction.class, name });
  node.querySelector(".why").ariaPressed = shown === true;
  const over = node.querySelector(".map");
  over.hidden = !shown;
  over.alt = over.title = say("whyPicture", { class: prediction.class });
  if (map && over.src !== map) over.src = map;
  node.querySelector(".bars").replaceChildren(...bars(prediction));
}

// The likeliest classes, and all that the image is taken for; the others in one bar: their sum, or, where every class has a
// probability of its own, the largest.
function bars({ probabilities, classes }) {
  const sorted = Object.entries(probabilities).sort(([, a], [, b]) => b - a);
  const shown = Math.max(BARS, classes.length);
  const rows = sorted.slice(0, shown).map(([name, share]) => bar(name, share, classes.includes(name)));
  const others = sorted.slice(shown).map(([, share]) => share);
  if (others.length === 0) return rows;
  const count = others.length;
  const last = model?.multi_label
    ? bar(say("othersEach", { count }), others[0], false)
    : bar(say("others", { count }), others.reduce((sum, share) => sum + share), false);
  return [...rows, last];
}

function bar(name, share, taken) {
  const row = $("bar").content.firstElementChild.cloneNode(true);
  row.classList.toggle("taken", taken);
  row.querySelector(".class").textContent = name;
  row.querySelector(".percent").textContent = percent(share);
  row.querySelector(".fill").style.width = `${100 * share}%`;
  return row;
}

$("clear").addEventListener("click", () => {
  cards = [];
  pending = [];
  $("cards").replaceChildren();
  $("history").hidden = true;
  $("choose").focus();
});

// --- From cards to requests -------------------------------------------------------------------------------------------

async function enqueue(added) {
  for (const card of added) update(card, { state: "working", text: () => say("working"), again: false });
  pending.push(...added);
  if (sending) return;
  sending = true;
  try {
    while (pending.length > 0) await send(nextRequest());
  } finally {
    sending = false;
  }
}

function nextRequest() {
  let bytes = 0;
  let count = 0;
  while (count < Math.min(pending.length, PICTURES_PER_REQUEST)) {
    bytes += pending[count].file.size;
    if (count > 0 && bytes > BYTES_PER_REQUEST) break;
    count += 1;
  }
  return pending.splice(0, count);
}

async function send(request) {
  const form = new FormData();
  for (const { file, name } of request) form.append("image", file, name);
  try {
    const answer = await ask("v1/predict", form, (text) => request.forEach((card) => update(card, { text })));
    request.forEach((card, place) => receive(card, answer.predictions?.[place]));
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    // More than the server takes at once, which may still be little enough in two requests.
    if (failure.status === 413 && request.length > 1) {
      const half = request.length >> 1;
      await send(request.slice(0, half));
      return send(request.slice(half));
    }
    for (const card of request) update(card, { state: "failed", text: failure.text, again: failure.again });
  }
  // One sentence a picture for those who hear the page.
  const heard = (card) => card.node.querySelector(card.state === "failed" ? ".reason" : ".answer").textContent;
  $("spoken").textContent = request.map((card) => say("spoken", { name: card.name, answer: heard(card) })).join(" ");
}

function receive(card, prediction) {
  if (prediction?.probabilities) update(card, { state: "answered", prediction });
  else update(card, { state: "failed", text: () => prediction?.error ? sayProblem(prediction.error) : say("garbled", { status: 200 }) });
}

// Lays over a picture what speaks for its class, or takes it away.
async function explain(card) {
  if (card.map) return update(card, { shown: !card.shown });
  const button = card.node.querySelector(".why");
  const form = new FormData();
  form.append("image", card.file, card.name);
  button.disabled = true;
  try {
    update(card, { map: (await ask("v1/explain", form, notify)).map, shown: true });
    notify(() => "");
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    notify(failure.text);
  } finally {
    button.disabled = false;
  }
}

// Gives the server a picture with the class that it is of.
async function collect(card, name) {
  if (name === "") return;
  const form = new FormData();
  form.append("image", card.file, card.name);
  try {
    await ask(`v1/collect?class=${encodeURIComponent(name)}`, form, notify);
    notify(() => "");
    update(card, { kept: name });
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    update(card, {});
    notify(failure.text);
  }
}

// --- Drop, paste, choose, camera --------------------------------------------------------------------------------------

const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");

document.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});

document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragging");
});

document.addEventListener("drop", (event) => {
  document.body.classList.remove("dragging");
  if (!holdsFiles(event)) return;
  event.preventDefault();
  const items = Array.from(event.dataTransfer.items).filter((item) => item.kind === "file");
  const files = items.filter((item) => !item.webkitGetAsEntry()?.isDirectory).map((item) => item.getAsFile());
  addPictures(files);
  if (files.length < items.length) notify(() => say("folder"));
});

document.addEventListener("paste", (event) => addPictures(event.clipboardData.files));

for (const id of ["files", "photo"]) {
  $(id).addEventListener("change", () => {
    addPictures($(id).files);
    $(id).value = ""; // So that the same file can be chosen again.
  });
}
$("choose").addEventListener("click", () => $("files").click());

// Phones have an application for the camera, desktops show its picture here.
const byTouch = matchMedia("(pointer: coarse)").matches;
let stream = null;

async function offerCamera() {
  const devices = await navigator.mediaDevices?.enumerateDevices().catch(() => []) ?? [];
  $("camera").hidden = !byTouch && !devices.some(({ kind }) => kind === "videoinput");
}
offerCamera();
navigator.mediaDevices?.addEventListener("devicechange", offerCamera);

$("camera").addEventListener("click", async () => {
  if (byTouch) return $("photo").click();
  notify(() => "");
  $("viewfinder").showModal();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch (error) {
    notify(() => say("noCamera", { reason: error.message }));
    return $("viewfinder").close();
  }
  if (!$("viewfinder").open) return stopCamera(); // Left before the camera was allowed.
  $("video").srcObject = stream;
});

$("video").addEventListener("playing", () => { $("take").disabled = false; });

$("take").addEventListener("click", () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [$("video").videoWidth, $("video").videoHeight];
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  const name = `camera-${new Date().toTimeString().slice(0, 8).replaceAll(":", "-")}.jpg`;
  canvas.toBlob((blob) => addPictures([new File([blob], name, { type: blob.type })]), "image/jpeg", 0.95);
  $("viewfinder").close();
});

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
  $("take").disabled = true;
}
$("leave").addEventListener("click", () => $("viewfinder").close());
$("viewfinder").addEventListener("close", stopCamera);

// --- Examples ---------------------------------------------------------------------------------------------------------

// Offers the pictures that the server has to try; they go the way of any other.
async function offerExamples(names) {
  const buttons = await Promise.all(names.map(async (name, index) => {
    const bytes = await ask(`v1/examples/${index}`);
    const button = $("example").content.firstElementChild.cloneNode(true);
    const picture = button.querySelector("img");
    picture.src = URL.createObjectURL(bytes);
    picture.dataset.name = name;
    button.addEventListener("click", () => addPictures([new File([bytes], name, { type: bytes.type })]));
    return button;
  }));
  $("examples").querySelector(".buttons").replaceChildren(...buttons);
  $("examples").hidden = buttons.length === 0;
}

// --- Start ------------------------------------------------------------------------------------------------------------

renderPage();
try {
  let busy;
  model = await ask("v1/model", undefined, (text) => notify(busy = text));
  if (notice === busy) notify(() => "");
  await offerExamples(model.examples ?? []);
  renderPage();
} catch (failure) {
  notify(failure.text);
}
