"use strict";
// Shows single test images beside the plot, and fills the gallery by group and ranking. Without
// this script the page still has all of its tables and figures, and the gallery's first rows.

const HIT_RADIUS = 24; // CSS pixels around a point: enough for a finger

const images = document.getElementById("images");
const plot = document.getElementById("plot");
const ring = document.getElementById("ring");
const shown = document.getElementById("shown");
const pinNote = document.getElementById("pin-note");
const groupSelect = document.getElementById("group");
const rankingSelect = document.getElementById("ranking");
const count = document.getElementById("count");
const gallery = document.getElementById("gallery");
const rest = document.getElementById("rest"); // the cards that are in no row

const cards = [...gallery.querySelectorAll(".case")];
const cardOf = new Map(cards.map((card) => [card.dataset.id, card]));
const points = [...plot.querySelectorAll(".point")];
let current = points.find((point) => point.tabIndex === 0);
let isPinned = false;

// The plot

function placeOf(point) {
  const { e, f } = point.transform.baseVal[0].matrix;
  return { x: e, y: f };
}

/** The nearest point of the chosen group within reach of a mouse or a finger, if any. */
function pointAt(event) {
  const matrix = plot.getScreenCTM();
  const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
  let nearest = null;
  let least = HIT_RADIUS / matrix.a;
  for (const point of points.filter(isInGroup)) {
    const place = placeOf(point);
    const distance = Math.hypot(place.x - x, place.y - y);
    if (distance < least) [nearest, least] = [point, distance];
  }
  return nearest;
}

function show(point) {
  current.tabIndex = -1; // one stop for the Tab key, the arrow keys do the rest
  point.tabIndex = 0;
  current = point;
  const { x, y } = placeOf(point);
  ring.setAttribute("cx", x);
  ring.setAttribute("cy", y);
  const copy = cardOf.get(point.dataset.id).cloneNode(true);
  copy.querySelectorAll("path[id]").forEach((path) => path.removeAttribute("id"));
  copy.querySelector("details").open = true;
  shown.replaceChildren(copy);
}

function pin(state) {
  isPinned = state;
  points.forEach((point) => point.setAttribute("aria-pressed", isPinned && point === current));
  pinNote.textContent = isPinned ? pinNote.dataset.pinned : pinNote.dataset.free;
}

plot.addEventListener("pointermove", (event) => {
  const point = event.pointerType === "touch" || isPinned ? null : pointAt(event);
  if (point && point !== current) show(point);
});

plot.addEventListener("click", (event) => {
  const point = pointAt(event);
  const isRelease = !point || (isPinned && point === current);
  if (point) {
    show(point);
    point.focus({ preventScroll: true });
  }
  pin(!isRelease);
});

plot.addEventListener("focusin", (event) => {
  if (event.target !== current && event.target.matches(".point")) show(event.target);
});

plot.addEventListener("keydown", (event) => {
  const open = points.filter(isInGroup);
  const place = open.indexOf(current);
  const moves = {
    ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1,
    Home: 0, End: open.length - 1,
  };
  if (event.key in moves) {
    open[Math.min(Math.max(moves[event.key], 0), open.length - 1)].focus();
    pin(isPinned);
  } else if (event.key === "Enter" || event.key === " ") {
    pin(!isPinned);
  } else if (event.key === "Escape") {
    pin(false);
  } else {
    return;
  }
  event.preventDefault();
});

// The gallery

function isInGroup(element) {
  const { stratum, name } = groupSelect.selectedOptions[0].dataset;
  return !stratum || cardOf.get(element.dataset.id).dataset[stratum] === name;
}

/** Best, middle and worst; one row if that would be all images. As `choose_rows` in Python. */
function chooseRows(ranked) {
  const num = Number(gallery.dataset.numExamples);
  if (ranked.length <= 3 * num) return { best: ranked, median: [], worst: [] };
  const middle = Math.floor((ranked.length - num) / 2);
  return {
    best: ranked.slice(0, num),
    median: ranked.slice(middle, middle + num),
    worst: ranked.slice(-num).reverse(),
  };
}

function fillGallery() {
  const key = rankingSelect.value;
  const titles = rankingSelect.selectedOptions[0].dataset;
  const ranked = cards.filter(isInGroup).sort(
    (a, b) => b.dataset[key] - a.dataset[key] || (a.dataset.id < b.dataset.id ? -1 : 1),
  );
  const rows = chooseRows(ranked);
  rest.append(...cards);
  for (const [name, chosen] of Object.entries(rows)) {
    const row = gallery.querySelector(`[data-row=${name}]`);
    row.hidden = chosen.length === 0;
    row.querySelector("h3").textContent = rows.worst.length ? titles[name] : titles.all;
    row.querySelector(".examples").append(...chosen);
  }
  count.textContent = `${ranked.length} of ${cards.length} images`;
}

function fillPage() {
  points.forEach((point) => point.classList.toggle("dim", !isInGroup(point)));
  for (const number of images.querySelectorAll(".marks [data-winner]")) {
    const { winner } = number.dataset;
    number.textContent = points.filter((p) => isInGroup(p) && p.dataset.winner === winner).length;
  }
  fillGallery();
  if (!isInGroup(current)) {
    show(points.find(isInGroup));
    pin(false);
  }
}

groupSelect.addEventListener("change", fillPage);
rankingSelect.addEventListener("change", fillGallery);

for (const box of images.querySelectorAll("[data-contour]")) {
  const update = () => images.classList.toggle(`without-${box.dataset.contour}`, !box.checked);
  box.addEventListener("change", update);
  update(); // a browser may have kept the state of the last visit
}
document.documentElement.classList.add("scripted");
fillPage();
show(current);
pin(false);
