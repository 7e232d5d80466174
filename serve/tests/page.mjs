// The page in a real browser, against a running server:
//
//     node serve/tests/page.mjs ADDRESS SCREENSHOTS PICTURE PICTURE...
//
// ADDRESS is the server's, such as http://127.0.0.1:8000; SCREENSHOTS a folder to write into. Every PICTURE (two or more JPEG
// files) lies in a folder named as the class that the model takes it for. `CHROMIUM` names the browser's program,
// /usr/bin/chromium where it is not set. The package `playwright-core` is looked for in the folders of NODE_PATH too.
//
// What a model of one label cannot show (many classes, several labels, a busy server, a wanted token) is answered here in
// the server's place.

import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";

// `require` finds packages in NODE_PATH, `import` does not.
const { chromium } = createRequire(import.meta.url)("playwright-core");

const [address, screenshots, ...files] = process.argv.slice(2);
const pictures = files.map((file) => path.resolve(file));
if (pictures.length < 2) {
  console.error("usage: node page.mjs ADDRESS SCREENSHOTS PICTURE PICTURE...");
  process.exit(2);
}
const classOf = (picture) => path.basename(path.dirname(picture));
const origin = new URL(address).origin;
const scratch = await mkdtemp(path.join(tmpdir(), "page-"));
const noPicture = path.join(scratch, "text.jpg");
await writeFile(noPicture, "This is no picture.\n");
await mkdir(path.join(scratch, "folder"));
await mkdir(screenshots, { recursive: true });

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],
});

const desktop = { viewport: { width: 1100, height: 860 }, locale: "en-US", colorScheme: "light" };
const phone = { ...desktop, viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
const problem = (status, detail, headers = {}, more = {}) => ({
  status,
  headers: { ...headers, "Content-Type": "application/problem+json" },
  body: JSON.stringify({ type: "about:blank", title: "Refused", status, detail, ...more }),
});

// Opens the page in a browser that remembers nothing, gives it to `check`, and closes it; fails on anything that the browser
// complains about and on requests to other hosts. Answers that say no are in the console too: `refusals` are expected.
async function visit(options, refusals, check, prepare = () => {}) {
  const context = await browser.newContext({ ...options, permissions: ["clipboard-read", "clipboard-write", "camera"] });
  const page = await context.newPage();
  page.setDefaultTimeout(10_000);
  page.on("filechooser", () => {}); // From the start: told only at the key press, Chromium may open its own dialog first.
  // What the page sends, in pictures a request: Chromium does not tell the body of a request that holds files.
  await page.addInitScript(() => {
    window.sent = [];
    const { fetch } = window;
    window.fetch = (path, options) => {
      if (options?.body) window.sent.push(options.body.getAll("image").length);
      return fetch(path, options);
    };
  });
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    const refused = refusals.some((refusal) => message.text().startsWith("Failed to load resource") && message.text().includes(refusal));
    if (["error", "warning"].includes(message.type()) && !refused) complaints.push(`${message.text()} (${message.location().url})`);
  });
  context.on("request", (request) => {
    const url = new URL(request.url());
    if (!["blob:", "data:"].includes(url.protocol) && url.origin !== origin) complaints.push(`asked another host: ${url}`);
  });
  await prepare(page);
  await page.goto(address);
  await check(page);
  assert.deepEqual(complaints, []);
  await context.close();
}

const cards = (page) => page.locator(".card");
const settled = (page, count) => page.waitForFunction(
  (count) => document.querySelectorAll(".card.answered, .card.failed").length === count, count);
// Of the window alone: for a picture of the whole page, Chromium forgets for a moment that a phone has no mouse.
const screenshot = (page, name) => page.screenshot({ path: path.join(screenshots, `${name}.png`) });

async function drop(page, files) {
  const devtools = await page.context().newCDPSession(page);
  const data = { items: [], files, dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await devtools.send("Input.dispatchDragEvent", { type, x: 40, y: 500, data });
  }
}

async function showsClass(card, expected) {
  assert.equal(await card.locator(".answer").textContent(), expected);
  const bars = await card.locator(".bars li").evaluateAll((rows) => rows.map((row) => ({
    class: row.querySelector(".class").textContent,
    percent: row.querySelector(".percent").textContent,
    width: row.querySelector(".fill").getBoundingClientRect().width / row.querySelector(".track").getBoundingClientRect().width,
  })));
  assert.equal(bars[0].class, expected, "the likeliest class comes first");
  for (const bar of bars) {
    assert.match(bar.percent, /^\d{1,3}\.\d\s?%$/);
    assert.ok(Math.abs(bar.width - parseFloat(bar.percent) / 100) < 0.02, `${bar.percent} is drawn ${bar.width} wide`);
  }
  assert.ok(await card.locator(".picture").evaluate((picture) => picture.complete && picture.naturalWidth > 0), "the thumbnail is there");
}

// Answers a request of one picture with `prediction`, and v1/model with `model`.
async function standIn(page, model, prediction) {
  await page.route("**/v1/model", (route) => route.fulfill({
    json: { name: "stand-in", input_size: 160, multi_label: false, threshold: null, tells_unlike: true, accuracy: null, ...model },
  }));
  await page.route("**/v1/predict", (route) => route.fulfill({
    json: { model: "stand-in", predictions: [{ name: "x", novelty: null, ...prediction }] },
  }));
}

const checks = {
  async "a dropped picture shows its class and bars"() {
    await visit(desktop, [], async (page) => {
      await drop(page, [pictures[0]]);
      await settled(page, 1);
      await showsClass(cards(page).first(), classOf(pictures[0]));
      assert.match(await page.locator("#spoken").textContent(), new RegExp(classOf(pictures[0])), "screen readers hear it");
    });
  },

  async "what speaks for the class is laid over the picture on demand"() {
    await visit(desktop, [], async (page) => {
      await drop(page, [pictures[0]]);
      await settled(page, 1);
      const [why, map] = [".why", ".map"].map((part) => cards(page).first().locator(part));
      assert.equal(await map.isVisible(), false);
      await why.press("Enter");
      await map.waitFor({ state: "visible" });
      assert.ok(await map.evaluate((picture) => picture.decode().then(() => picture.naturalWidth > 0)));
      assert.match(await map.getAttribute("alt"), new RegExp(`Yellow speaks for ${classOf(pictures[0])}`));
      assert.equal(await why.getAttribute("aria-pressed"), "true");
      await screenshot(page, "why");
      await why.press("Enter");
      assert.equal(await map.isVisible(), false);
    });
  },

  async "where pictures are kept, a wrong answer is put right, and nowhere else"() {
    await visit(desktop, [], async (page) => {
      const { classes, collects } = await page.evaluate(() => fetch("v1/model", {}).then((answer) => answer.json()));
      await drop(page, [pictures[0]]);
      await settled(page, 1);
      const [wrong, kept] = [".wrong", ".kept"].map((part) => cards(page).first().locator(part));
      assert.equal(await wrong.isVisible(), collects);
      if (!collects) return;
      const other = classes.find((name) => name !== classOf(pictures[0]));
      await wrong.locator("select").selectOption(other);
      await page.waitForFunction((name) => document.querySelector(".kept").textContent.includes(name), other);
      assert.equal(await wrong.isVisible(), false);
      assert.ok(await kept.isVisible());
      await screenshot(page, "kept");
    });
  },

  async "an example is classified when it is clicked, or chosen by keyboard"() {
    await visit(desktop, [], async (page) => {
      const { classes, examples } = await page.evaluate(() => fetch("v1/model", {}).then((answer) => answer.json()));
      const buttons = page.locator("#examples button");
      await buttons.last().waitFor();
      assert.deepEqual(await buttons.locator("img").evaluateAll((all) => all.map((picture) => picture.alt)),
        examples.map((name) => `Example: ${name}`));
      assert.ok(await buttons.locator("img").evaluateAll((all) => all.every((picture) => picture.complete && picture.naturalWidth > 0)));
      await buttons.nth(0).click();
      await settled(page, 1);
      await showsClass(cards(page).first(), classes[0]);
      await buttons.nth(1).press("Enter");
      await settled(page, 2);
      await showsClass(cards(page).first(), classes[1]);
      await screenshot(page, "examples");
    });
  },

  async "the interface is described, and tried, on a page of its own"() {
    await visit(desktop, [], async (page) => {
      await page.getByRole("link", { name: "The interface for programs" }).click();
      const operation = (path) => page.locator(".opblock").filter({ has: page.locator(`[data-path="${path}"]`) });
      await operation("/v1/predict").waitFor();
      await screenshot(page, "docs");
      await operation("/v1/model").locator(".opblock-summary-control").click();
      await operation("/v1/model").getByRole("button", { name: "Try it out" }).click();
      await operation("/v1/model").getByRole("button", { name: "Execute" }).click();
      const answer = operation("/v1/model").locator(".live-responses-table .response");
      assert.match(await answer.locator(".response-col_status").textContent(), /^200/);
      assert.match(await answer.locator(".response-col_description").textContent(), /"input_size"/);
      await answer.scrollIntoViewIfNeeded();
      await screenshot(page, "docs_tried");
    });
  },

  async "a dropped folder is left out and named as such"() {
    await visit(desktop, [], async (page) => {
      await drop(page, [path.join(scratch, "folder"), pictures[0]]);
      await settled(page, 1);
      assert.match(await page.locator("#notice").textContent(), /folder/);
    });
  },

  async "a pasted picture shows its class"() {
    await visit(desktop, [], async (page) => {
      await page.evaluate(async (base64) => {
        const jpeg = new Blob([Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0))], { type: "image/jpeg" });
        const bitmap = await createImageBitmap(jpeg);
        const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
        canvas.getContext("2d").drawImage(bitmap, 0, 0);
        await navigator.clipboard.write([new ClipboardItem({ "image/png": canvas.convertToBlob({ type: "image/png" }) })]);
      }, await readFile(pictures[0], "base64"));
      await page.keyboard.press("Control+V");
      await settled(page, 1);
      await showsClass(cards(page).first(), classOf(pictures[0]));
    });
  },

  async "two pictures are chosen at once by keyboard alone, and the history is cleared"() {
    await visit(desktop, [], async (page) => {
      for (let tabs = 0; await page.evaluate(() => document.activeElement.id) !== "choose"; tabs += 1) {
        assert.ok(tabs < 5, "five Tabs do not reach the button that chooses pictures");
        await page.keyboard.press("Tab");
      }
      assert.notEqual(await page.locator("#choose").evaluate((button) => getComputedStyle(button).outlineStyle), "none", "focus is visible");
      const choosing = page.waitForEvent("filechooser");
      await page.keyboard.press("Enter");
      await (await choosing).setFiles(pictures.slice(0, 2));
      await settled(page, 2);
      for (const place of [0, 1]) await showsClass(cards(page).nth(place), classOf(pictures[place]));
      while (await page.evaluate(() => document.activeElement.id) !== "clear") await page.keyboard.press("Tab");
      await page.keyboard.press("Enter");
      assert.equal(await cards(page).count(), 0);
      assert.equal(await page.evaluate(() => document.activeElement.id), "choose");
    });
  },

  async "a text file named .jpg is refused with the server's reason, alone and among pictures"() {
    await visit(desktop, ["422"], async (page) => {
      await drop(page, [noPicture]);
      await settled(page, 1);
      assert.match(await cards(page).first().locator(".reason").textContent(), /text\.jpg.*not a/);
      await drop(page, [pictures[0], noPicture, pictures[1]]);
      await settled(page, 4);
      await showsClass(cards(page).nth(0), classOf(pictures[0]));
      assert.match(await cards(page).nth(1).locator(".reason").textContent(), /text\.jpg.*not a/);
      await showsClass(cards(page).nth(2), classOf(pictures[1]));
      await screenshot(page, "desktop");
      await page.emulateMedia({ colorScheme: "dark" });
      await screenshot(page, "dark");
    });
  },

  async "forty pictures go in requests of at most sixteen"() {
    await visit(desktop, [], async (page) => {
      await page.locator("#files").setInputFiles(Array.from({ length: 40 }, (_, place) => pictures[place % pictures.length]));
      await settled(page, 40);
      assert.deepEqual(await page.evaluate(() => window.sent), [16, 16, 8]);
    });
  },

  async "the camera's picture becomes a card"() {
    await visit(desktop, [], async (page) => {
      await page.locator("#camera").click();
      await page.locator("#take:enabled").waitFor();
      await screenshot(page, "camera");
      await page.locator("#take").click();
      await page.locator(".card.answered").waitFor();
      assert.equal(await page.locator("#viewfinder").isVisible(), false);
    });
  },

  async "the page speaks Chinese where the browser does, and remembers the switch to English"() {
    await visit({ ...desktop, locale: "zh-CN" }, [], async (page) => {
      assert.equal(await page.locator("#choose").textContent(), "选择图片");
      await drop(page, pictures.slice(0, 2));
      await settled(page, 2);
      await screenshot(page, "chinese");
      await page.locator("#language").click();
      assert.equal(await page.locator("#choose").textContent(), "Choose pictures");
      await page.reload();
      assert.equal(await page.locator("#choose").textContent(), "Choose pictures");
    });
  },

  async "why a picture is refused is said in Chinese on the Chinese page, and in English after a switch"() {
    let busy = false;
    await visit({ ...desktop, locale: "zh-CN" }, ["422", "429"], async (page) => {
      const reason = () => cards(page).first().locator(".reason").textContent();
      await drop(page, [noPicture]);
      await settled(page, 1);
      assert.equal(await reason(), "不是 JPEG、PNG、GIF、WebP 或 BMP 图片，请换一个文件。");
      await screenshot(page, "chinese_refusal");
      await page.locator("#language").click();
      assert.match(await reason(), /text\.jpg: not a JPEG/);
      await page.locator("#language").click();
      busy = true;
      await drop(page, [pictures[0]]);
      await settled(page, 2);
      assert.equal(await reason(), "服务器繁忙，请稍后重试。");
    }, (page) => page.route("**/v1/predict", (route) => busy
      ? route.fulfill(problem(429, "too many requests", { "Retry-After": "1" }, { code: "too-busy" }))
      : route.continue()));
  },

  async "a phone gets one column, its own camera and buttons for fingers"() {
    await visit(phone, ["422"], async (page) => {
      const choosing = page.waitForEvent("filechooser");
      await page.locator("#choose").tap();
      await (await choosing).setFiles([...pictures.slice(0, 2), noPicture]);
      await settled(page, 3);
      assert.equal(await page.locator("#drop-hint").isVisible(), false, "fingers do not drop");
      await screenshot(page, "phone");
      const small = await page.locator("button:visible").evaluateAll((buttons) => buttons
        .filter((button) => Math.min(button.offsetWidth, button.offsetHeight) < 44).map((button) => button.textContent));
      assert.deepEqual(small, [], "buttons under 44 pixels");
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing to scroll sideways");
      const lefts = await cards(page).evaluateAll((all) => all.map((card) => card.getBoundingClientRect().left));
      assert.equal(new Set(lefts).size, 1, "one column");
      const photographing = page.waitForEvent("filechooser");
      await page.locator("#camera").tap();
      assert.equal(await (await photographing).element().getAttribute("capture"), "environment");
    });
  },

  async "a wanted token is asked for, kept for the visit and asked for again when it is wrong"() {
    await visit(desktop, ["401"], async (page) => {
      await page.locator("#token-field").fill("wrong");
      await page.keyboard.press("Enter");
      await page.locator("#token-hint:not(:empty)").waitFor();
      await screenshot(page, "token");
      await page.locator("#token-field").fill("right");
      await page.keyboard.press("Enter");
      await page.locator("#token").waitFor({ state: "hidden" });
      await page.locator("#facts:not(:empty)").waitFor();
      await page.reload();
      await page.locator("#facts:not(:empty)").waitFor();
      await drop(page, [pictures[0]]);
      await settled(page, 1);
      await showsClass(cards(page).first(), classOf(pictures[0]));
    }, (page) => page.route("**/v1/*", (route) => {
      const right = route.request().headers().authorization === "Bearer right";
      return right ? route.continue() : route.fulfill(problem(401, "a token is wanted"));
    }));
  },

  async "a busy server is asked again three times, then by hand"() {
    let asked = 0;
    await visit(desktop, ["429"], async (page) => {
      await drop(page, [pictures[0]]);
      await page.getByText("Trying again in 1 s (1 of 3)").waitFor();
      await screenshot(page, "busy");
      await settled(page, 1);
      assert.equal(asked, 4);
      assert.equal(await cards(page).first().locator(".reason").textContent(), "the queue is full");
      await page.unroute("**/v1/predict");
      await page.getByRole("button", { name: "Try again" }).click();
      await page.locator(".card.answered").waitFor();
      await showsClass(cards(page).first(), classOf(pictures[0]));
    }, (page) => page.route("**/v1/predict", (route) => {
      asked += 1;
      return route.fulfill(problem(429, "the queue is full", { "Retry-After": "1" }));
    }));
  },

  async "a server that is gone is said to be gone"() {
    await visit(desktop, ["ERR_CONNECTION_REFUSED"], async (page) => {
      await drop(page, [pictures[0]]);
      await settled(page, 1);
      assert.match(await cards(page).first().locator(".reason").textContent(), /does not answer/);
    }, (page) => page.route("**/v1/predict", (route) => route.abort("connectionrefused")));
  },

  async "a request that is too large is halved"() {
    let first = true;
    await visit(desktop, ["413"], async (page) => {
      await page.locator("#files").setInputFiles(Array.from({ length: 4 }, () => pictures[0]));
      await settled(page, 4);
      assert.equal(await page.locator(".card.answered").count(), 4);
      assert.deepEqual(await page.evaluate(() => window.sent), [4, 2, 2]);
    }, (page) => page.route("**/v1/predict", (route) => {
      const answer = first ? route.fulfill(problem(413, "too large")) : route.continue();
      first = false;
      return answer;
    }));
  },

  async "a picture unlike the training's is said to be, with the most similar class"() {
    const probabilities = { cats: 0.6, dogs: 0.4 };
    await visit(desktop, [], async (page) => {
      await drop(page, [pictures[0]]);
      await settled(page, 1);
      assert.equal(await cards(page).first().locator(".answer").textContent(), "Unlike anything it was trained on");
      assert.equal(await cards(page).first().locator(".nearest").textContent(), "Most similar: cats");
      await screenshot(page, "unlike");
    }, (page) => standIn(page, { classes: ["cats", "dogs"] }, { class: "cats", probability: 0.6, probabilities, classes: ["cats"], unlike: true }));
  },

  async "of many classes the ten likeliest are shown, the others as their sum, and names are no markup"() {
    const names = ["<b>bold</b>", ...Array.from({ length: 14 }, (_, place) => `class ${place + 2}`)];
    const probabilities = Object.fromEntries(names.map((name, place) => [name, place === 0 ? 0.3 : 0.05]));
    await visit(desktop, [], async (page) => {
      assert.equal(await page.locator("#question").textContent(), "Which of 15 classes is it?");
      await drop(page, [pictures[0]]);
      await settled(page, 1);
      const rows = await cards(page).first().locator(".bars li").allTextContents();
      assert.equal(rows.length, 11);
      assert.equal(rows[0], "<b>bold</b>30.0%");
      assert.equal(rows[10], "5 others25.0%");
      assert.equal(await page.locator(".card b").count(), 0);
      await screenshot(page, "many_classes");
    }, (page) => standIn(page, { classes: names }, { class: names[0], probability: 0.3, probabilities, classes: [names[0]], unlike: null }));
  },

  async "of several labels every one that is taken is marked"() {
    const probabilities = { beach: 0.91, people: 0.72, dog: 0.31, snow: 0.02, car: 0.01 };
    await visit(desktop, [], async (page) => {
      await drop(page, [pictures[0]]);
      await settled(page, 1);
      assert.equal(await cards(page).first().locator(".answer").textContent(), "beach and people");
      assert.deepEqual(await page.locator(".many .taken .class").allTextContents(), ["beach", "people"]);
      await screenshot(page, "several_labels");
    }, (page) => standIn(page, { classes: Object.keys(probabilities), multi_label: true, threshold: 0.5 },
      { class: "beach", probability: 0.91, probabilities, classes: ["beach", "people"], unlike: false }));
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok: ${name}`);
  } catch (error) {
    failed += 1;
    console.error(`FAILED: ${name}\n${error.stack}\n`);
  }
}
await browser.close();
await rm(scratch, { recursive: true });
process.exit(failed > 0 ? 1 : 0);
