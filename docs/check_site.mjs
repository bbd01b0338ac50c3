// Looks at every page of the built site in headless Chromium, and fails with one line for each thing that is wrong.
//
//     node docs/check_site.mjs [docs/_build/html]
//
// Every page loads without console errors and without a request to another server, on a wide screen and on a phone of
// 390 pixels, where it must not scroll sideways; mathematics and figures are drawn, figures have alternative texts; links
// within the site lead somewhere; search finds "InfoNCE"; the theme toggles.
import { createReadStream, existsSync, readdirSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { delimiter, extname, join, relative, resolve, sep } from "node:path";
import { chromium } from "playwright-core";

const root = resolve(process.argv[2] ?? "docs/_build/html");
const problems = [], began = Date.now();
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png",
                ".woff2": "font/woff2", ".json": "application/json", ".ipynb": "application/json" };

function stop(line) {
  console.error(line);
  process.exit(1);
}

function browserPath() {
  const named = process.env.CHROMIUM ? [process.env.CHROMIUM] : [];
  const folders = (process.env.PATH ?? "").split(delimiter);
  const found = folders.flatMap((f) => ["chromium", "chromium-browser", "google-chrome"].map((name) => join(f, name)));
  return [...named, ...found].find(existsSync) ?? stop("There is no chromium or google-chrome on the PATH: install one, or name it in $CHROMIUM");
}

function pagesBelow(folder) {
  return readdirSync(folder, { recursive: true }).map((p) => p.split(sep).join("/"))
    .filter((p) => p.endsWith(".html") && !p.startsWith("_static/")).sort();
}

function serve() {
  const server = createServer((request, response) => {
    const path = join(root, decodeURIComponent(new URL(request.url, "http://x").pathname));
    const good = path.startsWith(root) && existsSync(path) && statSync(path).isFile();
    response.writeHead(good ? 200 : 404, { "content-type": TYPES[extname(path)] ?? "application/octet-stream" });
    good ? createReadStream(path).pipe(response) : response.end();
  });
  return new Promise((done) => server.listen(0, "127.0.0.1", () => done([server, `http://127.0.0.1:${server.address().port}/`])));
}

// What is read from a page in the browser: its links and anchors, its figures, its mathematics.
const read = () => ({
  ids: [...document.querySelectorAll("[id], a[name]")].map((e) => e.id || e.getAttribute("name")),
  links: [...document.querySelectorAll("a[href]")].map((a) => a.href),
  images: [...document.images].filter((i) => i.checkVisibility()).map((i) => [i.src, i.alt.trim(), i.complete && i.naturalWidth > 0]),
  math: document.querySelectorAll(".math").length, drawn: document.querySelectorAll("mjx-container svg").length,
  wrong: document.querySelectorAll("mjx-merror, [data-mjx-error]").length, title: document.title,
});

async function look(context, base, path) {
  const page = await context.newPage(), say = (what) => problems.push(`${path}: ${what}`);
  page.on("console", (m) => m.type() === "error" && say(`console: ${m.text()}`));
  page.on("pageerror", (e) => say(`error: ${e.message}`));
  await page.route((url) => !url.href.startsWith(base), (route) => {
    say(`asks another server: ${route.request().url().slice(0, 200)}`);
    return route.abort();
  });
  await page.goto(base + path, { waitUntil: "load" });
  await page.evaluate(async () => {
    for (const image of document.images) image.loading = "eager";
    await (window.MathJax?.startup?.promise ?? null);
    await Promise.all([...document.images].filter((i) => i.checkVisibility()).map((i) => i.decode().catch(() => null)));
  });
  const found = await page.evaluate(read);
  if (found.math && !found.drawn) say("mathematics is not drawn");
  if (found.wrong) say(`${found.wrong} formulas with errors`);
  for (const [src, alt, good] of found.images) {
    if (!good) say(`figure does not load: ${src.slice(0, 200)}`);
    if (!alt) say(`figure without alternative text: ${src.slice(0, 200)}`);
  }
  if (path.startsWith("nbs/")) {
    const own = path.replace(/html$/, "ipynb"), launch = found.links.filter((l) => /colab|binder/.test(new URL(l).hostname));
    if (!found.links.includes(`${base}_sources/${own}`)) say("no button downloads the notebook");
    for (const l of launch) if (!decodeURIComponent(l).endsWith(own)) say(`a launch button leads elsewhere: ${l}`);
    if (process.env.REPOSITORY && launch.length < 2) say("Colab's or Binder's button is missing");
  }
  await page.setViewportSize({ width: 390, height: 844 });
  await page.waitForTimeout(100);
  const width = await page.evaluate(() => document.scrollingElement.scrollWidth);
  if (width > 390) say(`is ${width} pixels wide on a phone of 390`);
  await page.close();
  return [path, found];
}

function checkLinks(base, pages) {
  for (const [path, { links }] of pages)
    for (const link of new Set(links.filter((l) => l.startsWith(base)))) {
      const [file, anchor] = link.slice(base.length).split("#").map((part) => decodeURIComponent(part ?? ""));
      const target = (file.split("?")[0] || "index.html");
      if (!existsSync(join(root, target))) problems.push(`${path}: dead link to ${target}`);
      else if (anchor && pages.has(target) && !pages.get(target).ids.includes(anchor)) problems.push(`${path}: ${target} has no #${anchor}`);
    }
}

async function searchAndTheme(context, base) {
  const page = await context.newPage();
  await page.goto(`${base}search.html?q=InfoNCE`, { waitUntil: "load" });
  await page.locator("#search-results li a").first().waitFor({ timeout: 15000 })
    .catch(() => problems.push('search finds nothing for "InfoNCE"'));
  await page.waitForTimeout(2000);                                    // results come one by one
  const hits = await page.locator("#search-results li a").count();
  await page.goto(`${base}index.html`, { waitUntil: "load" });
  const theme = () => page.evaluate(() => [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor].join(" "));
  const seen = new Set();
  for (const mode of ["light", "dark"]) {
    await page.locator(".theme-switch-button:visible").first().click({ timeout: 5000 });
    await page.locator(`.theme-change-button[data-mode=${mode}]:visible`).first().click({ timeout: 5000 });
    seen.add(await theme());
  }
  if (seen.size < 2) problems.push(`the theme does not toggle: ${[...seen]}`);
  return hits;
}

if (!existsSync(join(root, "index.html"))) stop(`There is no site in ${relative(".", root) || root}: build it with \`make site\``);
const [server, base] = await serve();
const browser = await chromium.launch({ executablePath: browserPath(), args: process.getuid?.() === 0 ? ["--no-sandbox"] : [] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
const todo = pagesBelow(root), pages = new Map();
await Promise.all([1, 2, 3].map(async () => {
  while (todo.length) pages.set(...await look(context, base, todo.shift()));
}));
checkLinks(base, pages);
const hits = await searchAndTheme(context, base);
await browser.close();
server.close();
if (!problems.length && hits) console.log(`${pages.size} pages are in order; search finds InfoNCE on ${hits} of them (${Math.round((Date.now() - began) / 1000)} s)`);
else stop(problems.join("\n"));
