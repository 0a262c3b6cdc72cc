// What the page does: files in, a card for each, files out. Images are processed one at a time.

const facts = JSON.parse(document.getElementById("facts").textContent);
const byId = (id) => document.getElementById(id);
const results = byId("results");
const entries = []; // what is known of each image with a mask, in the order of the cards
const waiting = [];
let network = null;
let isWorking = false;

/** Lets the browser draw before a slow step. */
const pause = () => new Promise((resolve) => { setTimeout(resolve); });

function say(text, share) {
  byId("status").textContent = text;
  byId("progress").hidden = share === null;
  if (share !== null) byId("progress").value = share;
}

function complain(text) {
  const line = document.createElement("li");
  line.textContent = text;
  byId("errors").append(line);
}

// Files in

function add(files) {
  waiting.push(...files);
  work();
}

/** Works through the waiting files, once the network is loaded. */
async function work() {
  if (isWorking || network === null) return;
  isWorking = true;
  for (let num = 1; waiting.length > 0; num += 1) {
    const file = waiting.shift();
    say(`${file.name}, ${num} of ${num + waiting.length}`, (num - 1) / (num + waiting.length));
    await pause();
    try {
      show(await segment(file));
    } catch (error) {
      const why = error instanceof Refusal ? error.message
        : `cannot be segmented (${error.message}). Load this page again, and give it this file alone`;
      complain(`${file.name} ${why}`);
    }
  }
  isWorking = false;
  say(entries.length ? countImages() : "Ready.", null);
}

function countImages() {
  return entries.length === 1 ? "1 image." : `${entries.length} images.`;
}

/** What is kept of an image: its file, its probabilities, and a summary of its mask. */
async function segment(file) {
  const start = performance.now();
  const { pixels, height, width } = await readPhotograph(file, facts.imageSize);
  const entry = { file, height, width, probabilities: await network(pixels) };
  const { mask, area, meanProbability } = maskOf(entry);
  const regions = findRegions(mask, entry);
  const numRegions = regions.length;
  entry.name = outputName(file.name, new Set(entries.map(({ name }) => name)));
  entry.summary = summarise(mask, {
    file: file.name, height, width, area, meanProbability, numRegions,
  });
  entry.path = toPath(regions);
  entry.milliseconds = performance.now() - start;
  return entry;
}

/** The mask, made again: it is not kept, as those of many photographs would fill the memory. */
function maskOf({ probabilities, height, width }) {
  return makeMask(probabilities, {
    size: facts.imageSize, height, width, threshold: facts.threshold,
  });
}

// A card for each

function show(entry) {
  const { file, name, height, width, summary } = entry;
  const card = byId("card").content.firstElementChild.cloneNode(true);
  const part = (selector) => card.querySelector(selector);
  const address = URL.createObjectURL(file);
  part("img").src = address;
  part("img").alt = `${file.name} with the outline of the lesion`;
  part("svg").setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const path of card.querySelectorAll("path")) path.setAttribute("d", entry.path);
  part(".photograph").style.aspectRatio = `${width} / ${height}`;
  part(".name").textContent = file.name;
  part(".share").textContent = describeMask(summary);
  part(".size").textContent = `${width} × ${height} pixels`;
  part(".mask").title = "as PNG, 0 and 255";
  part(".outline").title = "as GeoJSON, in pixels";
  part(".mask").addEventListener("click", async () => save(...await maskFile(entry)));
  part(".outline").addEventListener("click", () => save(...outlineFile(entry)));
  part(".remove").addEventListener("click", () => {
    URL.revokeObjectURL(address);
    entries.splice(entries.indexOf(entry), 1);
    const next = card.nextElementSibling ?? card.previousElementSibling;
    card.remove();
    (next?.querySelector(".remove") ?? byId("choose")).focus();
    refresh();
  });
  for (const button of card.querySelectorAll("button")) {
    button.setAttribute("aria-label", `${button.textContent} of ${file.name}`);
  }
  card.dataset.name = name;
  card.dataset.milliseconds = Math.round(entry.milliseconds);
  entries.push(entry);
  results.append(card);
  refresh();
}

function describeMask({ lesion_pixels: area, lesion_fraction: share, ...summary }) {
  if (area === 0) return "no lesion found";
  const regions = summary.num_regions === 1 ? "" : `, in ${summary.num_regions} regions`;
  const border = summary.touches_border ? ", touches the border" : "";
  return `lesion: ${(100 * share).toFixed(1)} % of the image${regions}${border}`;
}

function refresh() {
  byId("tools").hidden = entries.length === 0;
  if (!isWorking) say(entries.length ? countImages() : "Ready.", null);
}

// Files out

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function maskFile(entry) {
  const content = await toPng(maskOf(entry).mask, entry);
  return [`${entry.name}_segmentation.png`, content, "image/png"];
}

function outlineFile(entry) {
  const { file, height, width } = entry;
  const regions = findRegions(maskOf(entry).mask, entry);
  const content = toGeojson(regions, { file: file.name, height, width });
  return [`${entry.name}_contours.geojson`, content, "application/geo+json"];
}

function tableFile() {
  return ["summary.csv", toCsv(entries.map(({ summary }) => summary)), "text/csv"];
}

async function saveAll() {
  const files = {};
  for (const [number, entry] of entries.entries()) {
    say(`packing ${entry.file.name}`, number / entries.length);
    await pause();
    for (const [name, content] of [await maskFile(entry), outlineFile(entry), tableFile()]) {
      files[name] = typeof content === "string" ? new TextEncoder().encode(content) : content;
    }
  }
  save("lesionseg.zip", toZip(files), "application/zip");
  say(countImages(), null);
}

// Controls

byId("choose").addEventListener("click", () => byId("files").click());
byId("photograph").addEventListener("click", () => byId("camera").click());
for (const input of [byId("files"), byId("camera")]) {
  input.addEventListener("change", () => {
    add([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
}
byId("table").addEventListener("click", () => save(...tableFile()));
byId("all").addEventListener("click", saveAll);
byId("opacity").addEventListener("input", ({ target }) => {
  results.style.setProperty("--opacity", target.value / 100);
});
byId("outlines").addEventListener("change", ({ target }) => {
  results.classList.toggle("without-outlines", !target.checked);
});
document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.documentElement.classList.add("dragged-over");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (relatedTarget === null) document.documentElement.classList.remove("dragged-over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.documentElement.classList.remove("dragged-over");
  add([...event.dataTransfer.files]);
});

// Start

async function start() {
  try {
    if (!canvasIsFaithful()) {
      throw new Error("this browser changes the pixels that a page reads, to protect its user from "
        + "being recognised; allow this page to read them, or take another browser");
    }
    network = await loadNetwork(facts, (share) => say("loading the model", share));
  } catch (error) {
    say(`This page cannot work here: ${error.message}.`, null);
    byId("status").classList.add("failed");
    return;
  }
  say("Ready.", null);
  document.documentElement.classList.add("ready");
  work();
}

start();
