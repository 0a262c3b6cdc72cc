// Image files as the network sees them, with what the browser decodes.

const LARGEST_SIDE = 16384; // in pixels, of what browsers can draw
const PNG_START = "89504e470d0a1a0a";

/** The EXIF orientation of a JPEG, 1 to 8; 1 if it is missing or damaged. */
function orientationOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    for (let place = 2; view.getUint8(place) === 0xff; place += 2 + view.getUint16(place + 2)) {
      const marker = view.getUint8(place + 1);
      if (marker === 0xda) return 1; // the pixels begin
      if (marker === 0xe1 && view.getUint32(place + 4) === 0x45786966) { // "Exif"
        return orientationInTiff(view, place + 10);
      }
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the file ends too early
  }
  return 1;
}

function orientationInTiff(view, start) {
  const littleEndian = view.getUint16(start) === 0x4949;
  const folder = start + view.getUint32(start + 4, littleEndian);
  const num = view.getUint16(folder, littleEndian);
  for (let entry = folder + 2; entry < folder + 2 + 12 * num; entry += 12) {
    if (view.getUint16(entry, littleEndian) === 0x0112) {
      const value = view.getUint16(entry + 8, littleEndian);
      return value >= 1 && value <= 8 ? value : 1;
    }
  }
  return 1;
}

/** What a file is, by its first bytes: `isJpeg`, and `isDeep` for a PNG with 16 bits a channel. */
function describeFile(bytes) {
  const start = Array.from(bytes.subarray(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { isJpeg: start.startsWith("ffd8ff"), isDeep: start === PNG_START && bytes[24] === 16 };
}

/**
 * An image file at the network's size.
 *
 * @returns `pixels`, (size, size) RGB, and the `height` and `width` of the image as it is shown:
 *     turned by EXIF, on white where it is transparent.
 * @throws Refusal when it cannot be read.
 */
async function readPhotograph(file, size) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const { isJpeg, isDeep } = describeFile(bytes);
  if (isDeep) throw new Refusal("has 16 bits a channel, which a browser cuts off. Save it with 8");
  const bitmap = await decodeImage(file);
  try {
    const { height, width } = bitmap;
    if (Math.max(height, width) > LARGEST_SIDE) {
      throw new Refusal(`is ${width} x ${height} pixels; a side has ${LARGEST_SIDE} at most. Make it smaller`);
    }
    const factor = isJpeg ? draftFactor(width, height, size) : 1;
    const cut = cutSides(isJpeg ? orientationOf(bytes) : 1);
    const readRows = makeRowReader(bitmap);
    return { pixels: shrink(readRows, { width, height, size, factor, cut }), height, width };
  } finally {
    bitmap.close();
  }
}

/** Whether a turned image has its originally right edge at the left, and its lower one at the top. */
function cutSides(orientation) {
  return { left: [2, 3, 6, 7].includes(orientation), top: [3, 4, 7, 8].includes(orientation) };
}

async function decodeImage(file) {
  try {
    // Ignores the file's colour profile, as Pillow does.
    return await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Refusal("cannot be read as an image by this browser. If another program shows it, save "
      + "it there as JPEG or PNG");
  }
}

/** Reads rows of a bitmap as RGBA pixels on white; consecutive rows all at once. */
function makeRowReader(bitmap) {
  const { width } = bitmap;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  return (numbers) => {
    const [first, last] = [numbers[0], numbers[numbers.length - 1]];
    const height = last - first + 1;
    if (canvas.height < height) canvas.height = height;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, first, width, height, 0, 0, width, height);
    const rows = context.getImageData(0, 0, width, height).data;
    if (height === numbers.length) return rows;
    const repeated = new Uint8ClampedArray(4 * width * numbers.length); // an edge, more than once
    numbers.forEach((number, index) => {
      const start = 4 * width * (number - first);
      repeated.set(rows.subarray(start, start + 4 * width), 4 * width * index);
    });
    return repeated;
  };
}

/** Whether pixels come back from a canvas unchanged: some browsers alter them for privacy. */
function canvasIsFaithful() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [64, 64];
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  const drawn = context.createImageData(64, 64);
  for (let k = 0; k < drawn.data.length; k += 1) drawn.data[k] = k % 4 === 3 ? 255 : (k * 37) % 256;
  context.putImageData(drawn, 0, 0);
  const read = context.getImageData(0, 0, 64, 64).data;
  return read.every((value, k) => value === drawn.data[k]);
}

/** Why a file gets no mask, as the rest of a sentence that begins with its name. */
class Refusal extends Error {}
