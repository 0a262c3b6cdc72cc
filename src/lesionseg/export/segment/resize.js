// Resizes images to the network's size and masks back to the image's, with the same numbers as
// `lesionseg predict`: Pillow's bilinear filter, torch's bilinear interpolation.

const PRECISION_BITS = 22; // of the filter's weights: Pillow computes in whole numbers

/**
 * For each new pixel, the first old pixel under the filter, and the weights from there on.
 *
 * The filter is a triangle that widens with the scale, as in Pillow's Resample.c.
 */
function filterWeights(oldSize, newSize) {
  const scale = oldSize / newSize;
  const support = Math.max(scale, 1);
  const inverse = 1 / support;
  return Array.from({ length: newSize }, (_, index) => {
    const center = (index + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), oldSize);
    const shares = Array.from({ length: end - first }, (_, offset) =>
      Math.max(1 - Math.abs((offset + first - center + 0.5) * inverse), 0));
    const total = shares.reduce((sum, share) => sum + share, 0);
    const weights = shares.map((share) => Math.trunc((share / total) * 2 ** PRECISION_BITS + 0.5));
    return { first, weights: Int32Array.from(weights) };
  });
}

/** Rows of RGBA pixels, filtered horizontally, as rows of RGB pixels of another width. */
function filterRows(rgba, width, filter) {
  const height = rgba.length / (4 * width);
  const rgb = new Uint8Array(3 * filter.length * height);
  let place = 0;
  for (let y = 0; y < height; y += 1) {
    for (const { first, weights } of filter) {
      let red = 2 ** (PRECISION_BITS - 1);
      let green = red;
      let blue = red;
      let at = 4 * (y * width + first);
      for (let k = 0; k < weights.length; k += 1, at += 4) {
        red += rgba[at] * weights[k];
        green += rgba[at + 1] * weights[k];
        blue += rgba[at + 2] * weights[k];
      }
      rgb[place++] = red >> PRECISION_BITS;
      rgb[place++] = green >> PRECISION_BITS;
      rgb[place++] = blue >> PRECISION_BITS;
    }
  }
  return rgb;
}

/** The vertical filter, for rows that come in strips: `add` each strip, then `finish`. */
function makeColumnFilter(length, filter) {
  const sums = new Int32Array(length * filter.length).fill(2 ** (PRECISION_BITS - 1));
  let numRows = 0; // added so far
  return {
    add(strip) {
      const before = numRows;
      numRows += strip.length / length;
      filter.forEach(({ first, weights }, index) => {
        const start = index * length;
        const end = Math.min(first + weights.length, numRows);
        for (let row = Math.max(first, before); row < end; row += 1) {
          const weight = weights[row - first];
          const at = (row - before) * length;
          for (let x = 0; x < length; x += 1) sums[start + x] += strip[at + x] * weight;
        }
      });
    },
    finish: () => Uint8Array.from(sums, (sum) => sum >> PRECISION_BITS),
  };
}

/** Whole numbers from `start` on, each clamped to the pixels that an image has. */
function clampedRange(start, length, size) {
  return Int32Array.from({ length }, (_, index) => Math.min(Math.max(start + index, 0), size - 1));
}

/**
 * The means of whole blocks as RGBA pixels, as libjpeg decodes a JPEG at a reduced scale.
 *
 * @param rgba Rows of an image; their number is a whole number of blocks.
 * @param left Where the first block starts: 0, or less if that block is cut off; its missing pixels
 *     repeat those of the edge, as encoders pad them.
 */
function averageBlocks(rgba, width, { factor, left }) {
  const numBlocks = Math.ceil((width - left) / factor);
  const columns = clampedRange(left, numBlocks * factor, width);
  const numRows = rgba.length / (4 * width * factor);
  const result = new Uint8ClampedArray(4 * numBlocks * numRows);
  const shift = 2 * Math.log2(factor);
  for (let row = 0; row < numRows; row += 1) {
    const sums = new Int32Array(4 * numBlocks).fill(factor ** 2 / 2);
    for (let y = row * factor; y < (row + 1) * factor; y += 1) {
      for (let block = 0, x = 0; block < numBlocks; block += 1) {
        for (let k = 0; k < factor; k += 1, x += 1) {
          const at = 4 * (y * width + columns[x]);
          sums[4 * block] += rgba[at];
          sums[4 * block + 1] += rgba[at + 1];
          sums[4 * block + 2] += rgba[at + 2];
        }
      }
    }
    const start = 4 * numBlocks * row;
    for (let k = 0; k < sums.length; k += 1) result[start + k] = sums[k] >> shift;
  }
  return result;
}

/** The factor by which `lesionseg predict` shrinks a JPEG: 8, 4, 2 or 1, like Pillow's `draft`. */
function draftFactor(width, height, size) {
  const most = Math.min(Math.floor(width / (2 * size)), Math.floor(height / (2 * size)));
  return [8, 4, 2].find((factor) => factor <= most) ?? 1;
}

/**
 * An image at the network's size, (size, size) RGB pixels.
 *
 * @param readRows Returns the RGBA pixels of the rows with the given numbers, repeated where a number
 *     is repeated: the whole image is never in memory.
 * @param factor Side of the blocks that are averaged first, 1 for none.
 * @param cut Whether the blocks that are cut off are the first ones: `{left, top}`.
 */
function shrink(readRows, { width, height, size, factor, cut }) {
  const missing = (length) => (factor - (length % factor)) % factor;
  const left = cut.left ? -missing(width) : 0;
  const top = cut.top ? -missing(height) : 0;
  const newWidth = Math.ceil(width / factor);
  const newHeight = Math.ceil(height / factor);
  // Pillow resizes the height first if it shrinks by more than twice as many pixels as the width.
  const isTall = newHeight > size && newHeight - size > 2 * (newWidth - size);
  const alongRows = filterWeights(newWidth, size);
  const rowLength = isTall ? 4 * newWidth : 3 * size;
  const columns = makeColumnFilter(rowLength, filterWeights(newHeight, size));
  const step = Math.max(Math.floor(2 ** 20 / (width * factor)), 1); // four megabytes of pixels
  for (let row = 0; row < newHeight; row += step) {
    const num = Math.min(step, newHeight - row);
    const rows = readRows(clampedRange(top + row * factor, num * factor, height));
    const means = factor === 1 ? rows : averageBlocks(rows, width, { factor, left });
    columns.add(isTall ? means : filterRows(means, newWidth, alongRows));
  }
  return isTall ? filterRows(columns.finish(), newWidth, alongRows) : columns.finish();
}

/** For each new pixel, the two old pixels that it lies between, and their weights, as in torch. */
function interpolationWeights(oldSize, newSize) {
  const scale = Math.fround(oldSize / newSize);
  return Array.from({ length: newSize }, (_, index) => {
    if (oldSize === newSize) return { first: index, second: index, near: 1, far: 0 };
    const exact = Math.fround(Math.fround(scale * Math.fround(index + 0.5)) - 0.5);
    const place = Math.max(exact, 0);
    const first = Math.min(Math.floor(place), oldSize - 1);
    const far = Math.min(Math.max(Math.fround(place - first), 0), 1);
    const second = Math.min(first + 1, oldSize - 1);
    return { first, second, near: Math.fround(1 - far), far };
  });
}

/**
 * The mask of an image at its own size, with its area and mean probability.
 *
 * @param probabilities (size, size) in [0, 1], interpolated bilinearly before the threshold.
 * @returns `mask`, (height, width) in {0, 1}; its number of pixels, `area`; `meanProbability` over
 *     these, null if there are none.
 */
function makeMask(probabilities, { size, height, width, threshold }) {
  const above = Math.fround(threshold);
  const columns = interpolationWeights(size, width);
  const widened = new Map(); // the two rows in use, at the new width
  const widen = (row) => {
    if (!widened.has(row)) {
      const start = row * size;
      widened.set(row, Float32Array.from(columns, ({ first, second, near, far }) =>
        Math.fround(probabilities[start + first] * near)
        + Math.fround(probabilities[start + second] * far)));
    }
    return widened.get(row);
  };
  const mask = new Uint8Array(width * height);
  let area = 0;
  let sum = 0;
  interpolationWeights(size, height).forEach(({ first, second, near, far }, y) => {
    const upper = widen(first);
    const lower = widen(second);
    for (const row of widened.keys()) if (row < first) widened.delete(row);
    for (let x = 0; x < width; x += 1) {
      const value = Math.fround(Math.fround(upper[x] * near) + Math.fround(lower[x] * far));
      if (value > above) {
        mask[y * width + x] = 1;
        area += 1;
        sum += value;
      }
    }
  });
  return { mask, area, meanProbability: area ? sum / area : null };
}
