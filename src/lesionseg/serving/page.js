// Ask the server for a mask, and draw it over the image.
"use strict";
const said = document.getElementById("said");
const canvas = document.getElementById("shown");
const LONGEST = 720; // pixels of the picture on the page
const LESION = [230, 40, 40, 110]; // RGBA

async function ask(file) {
  const form = new FormData();
  form.append("image", file);
  const response = await fetch("predict", { method: "POST", body: form });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

async function load(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

function tint(mask, width, height) {
  const layer = new OffscreenCanvas(width, height);
  const context = layer.getContext("2d");
  context.drawImage(mask, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data.set(pixels.data[i] > 127 ? LESION : [0, 0, 0, 0], i);
  }
  context.putImageData(pixels, 0, 0);
  return layer;
}

async function show(file, answer) {
  const url = URL.createObjectURL(file);
  const [image, mask] = await Promise.all([load(url), load(`data:image/png;base64,${answer.mask}`)]);
  URL.revokeObjectURL(url);
  const scale = Math.min(1, LONGEST / Math.max(answer.width, answer.height));
  canvas.width = Math.max(1, Math.round(answer.width * scale));
  canvas.height = Math.max(1, Math.round(answer.height * scale));
  canvas.hidden = false;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.drawImage(tint(mask, canvas.width, canvas.height), 0, 0);
}

document.getElementById("image").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (!file) return;
  canvas.hidden = true;
  said.textContent = "…";
  try {
    const answer = await ask(file);
    const share = (100 * answer.lesion_fraction).toFixed(1);
    said.textContent = `${answer.height} x ${answer.width} pixels (height x width), ${share} % lesion`;
    await show(file, answer);
  } catch (error) {
    said.textContent = error.message;
  }
});
