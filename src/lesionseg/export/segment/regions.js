// The regions of a mask and their outlines along the edges of pixels, as GeoJSON and SVG, with the
// same results as `lesionseg predict --contours geojson`.

/**
 * The 4-connected regions of a mask, the largest first.
 *
 * @param mask (height, width) in {0, 1}.
 * @returns For each region its `area` in pixels and its `rings`: closed lists of [x, y], first the
 *     outline, clockwise on the screen, then the holes, anticlockwise.
 */
function findRegions(mask, { height, width }) {
  const box = boundingBox(mask, { height, width });
  if (box === null) return [];
  const { labels, areas, stride } = labelRegions(mask, width, box);
  const rings = areas.map(() => []);
  const passed = new Uint8Array(labels.length);
  for (let pixel = stride; pixel < labels.length; pixel += 1) {
    // Every ring runs along the upper side of at least one pixel.
    if (labels[pixel] === 0 || labels[pixel - stride] !== 0 || passed[pixel]) continue;
    const ring = followRing(labels, stride, pixel, passed);
    rings[labels[pixel]].push(ring.map(([x, y]) => [x - 1 + box.left, y - 1 + box.top]));
  }
  return areas
    .map((area, label) => ({ area, rings: rings[label].sort((a, b) => ringArea(b) - ringArea(a)) }))
    .slice(1)
    .sort((a, b) => b.area - a.area);
}

/** The bounding box of a mask's pixels; null if there are none. */
function boundingBox(mask, { height, width }) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y += 1) {
    const row = mask.subarray(y * width, (y + 1) * width);
    const first = row.indexOf(1);
    if (first < 0) continue;
    left = Math.min(left, first);
    right = Math.max(right, row.lastIndexOf(1));
    top = Math.min(top, y);
    bottom = y;
  }
  return bottom < 0 ? null : { left, right, top, bottom };
}

/** For each pixel of the box the number of its region, with a rim of 0; and each region's area. */
function labelRegions(mask, width, { left, right, top, bottom }) {
  const stride = right - left + 3;
  const labels = new Int32Array(stride * (bottom - top + 3));
  const runs = findRuns(mask, width, { left, right, top, bottom });
  const numbers = new Map(); // of the regions, by their root runs
  const areas = [0];
  for (const run of runs) {
    const root = rootOf(run);
    if (!numbers.has(root)) {
      numbers.set(root, areas.length);
      areas.push(0);
    }
    const number = numbers.get(root);
    const start = (run.y - top + 1) * stride + 1 - left;
    labels.fill(number, start + run.start, start + run.end);
    areas[number] += run.end - run.start;
  }
  return { labels, areas, stride };
}

/** The runs of pixels in the rows of a mask; runs of one region share a root. */
function findRuns(mask, width, { left, right, top, bottom }) {
  const runs = [];
  let above = [];
  for (let y = top; y <= bottom; y += 1) {
    const row = mask.subarray(y * width, y * width + right + 1);
    const here = [];
    for (let start = row.indexOf(1, left); start >= 0;) {
      const found = row.indexOf(0, start);
      const end = found < 0 ? row.length : found;
      here.push({ y, start, end, parent: null });
      start = row.indexOf(1, end);
    }
    joinRuns(above, here);
    runs.push(...here);
    above = here;
  }
  return runs;
}

/** Gives touching runs of two adjacent rows the same root. */
function joinRuns(above, here) {
  for (let i = 0, j = 0; i < above.length && j < here.length;) {
    if (above[i].start < here[j].end && here[j].start < above[i].end) {
      const roots = [rootOf(above[i]), rootOf(here[j])];
      if (roots[0] !== roots[1]) roots[1].parent = roots[0];
    }
    if (above[i].end < here[j].end) i += 1;
    else j += 1;
  }
}

function rootOf(run) {
  let root = run;
  while (root.parent !== null) root = root.parent;
  for (let next = run; next !== root;) { // shortens the path for next time
    const { parent } = next;
    next.parent = root;
    next = parent;
  }
  return root;
}

/**
 * The corners of the ring that runs along the upper side of a pixel, with the region on its right.
 *
 * Where two pixels of one region touch only at a corner, the ring goes from one to the other, so
 * that it passes no corner twice; it never goes to a pixel of another region.
 */
function followRing(labels, stride, start, passed) {
  const steps = [1, stride, -1, -stride]; // to the right, down, to the left, up
  const moves = [[1, 0], [0, 1], [-1, 0], [0, -1]];
  const label = labels[start];
  let [x, y] = [start % stride, Math.floor(start / stride)];
  const ring = [];
  let pixel = start;
  let direction = 0;
  do {
    if (direction === 0) passed[pixel] = 1;
    x += moves[direction][0];
    y += moves[direction][1];
    const left = (direction + 3) % 4;
    const ahead = pixel + steps[direction];
    const aheadLeft = ahead + steps[left];
    if (labels[aheadLeft] === label) {
      pixel = aheadLeft;
      direction = left;
      ring.push([x, y]);
    } else if (labels[ahead] === label) {
      pixel = ahead;
    } else {
      direction = (direction + 1) % 4;
      ring.push([x, y]);
    }
  } while (pixel !== start || direction !== 0);
  return [...ring, ring[0]];
}

/** The area inside a closed ring by the shoelace formula, negative for a hole. */
function ringArea(ring) {
  let sum = 0;
  for (let k = 1; k < ring.length; k += 1) {
    sum += ring[k - 1][0] * ring[k][1] - ring[k][0] * ring[k - 1][1];
  }
  return sum / 2;
}

/** A GeoJSON FeatureCollection with a polygon for each region, coordinates in pixels. */
function toGeojson(regions, { file, height, width }) {
  const features = regions.map(({ area, rings }, index) => ({
    type: "Feature",
    geometry: { type: "Polygon", coordinates: rings },
    properties: { file, height, width, region: index + 1, area },
  }));
  return `${JSON.stringify({ type: "FeatureCollection", features })}\n`;
}

/** The rings as the `d` of an SVG path. */
function toPath(regions) {
  return regions
    .flatMap(({ rings }) => rings)
    .map((ring) => `M${ring.slice(0, -1).map(([x, y]) => `${x} ${y}`).join("L")}Z`)
    .join("");
}
