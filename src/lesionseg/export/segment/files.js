// The files that the page can save: a mask as PNG, the table as CSV, all of them in one ZIP.

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, number) => {
  let value = number;
  for (let bit = 0; bit < 8; bit += 1) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  return value;
});

/** The checksum of PNG and ZIP, CRC-32 of ISO 3309. */
function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = (value >>> 8) ^ CRC_TABLE[(value ^ byte) & 0xff];
  return (value ^ 0xffffffff) >>> 0;
}

function joinBytes(parts) {
  const joined = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let place = 0;
  for (const part of parts) {
    joined.set(part, place);
    place += part.length;
  }
  return joined;
}

/** Whole numbers as bytes, each given as its value and its number of bytes. */
function toBytes(fields, { littleEndian }) {
  const bytes = new Uint8Array(fields.reduce((length, [, size]) => length + size, 0));
  let place = 0;
  for (const [value, size] of fields) {
    for (let k = 0; k < size; k += 1) {
      const shift = 8 * (littleEndian ? k : size - 1 - k);
      bytes[place + k] = Math.floor(value / 2 ** shift) % 256;
    }
    place += size;
  }
  return bytes;
}

/** A mask (height, width) in {0, 1} as a PNG of 8-bit grey levels, 0 and 255. */
async function toPng(mask, { height, width }) {
  const rows = new Uint8Array((width + 1) * height); // each after a 0: no filter
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) rows[y * (width + 1) + 1 + x] = 255 * mask[y * width + x];
  }
  const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  const header = [[width, 4], [height, 4], [8, 1], [0, 1], [0, 1], [0, 1], [0, 1]];
  return joinBytes([
    Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
    pngChunk("IHDR", toBytes(header, { littleEndian: false })),
    pngChunk("IDAT", packed),
    pngChunk("IEND", new Uint8Array()),
  ]);
}

function pngChunk(name, content) {
  const checked = joinBytes([new TextEncoder().encode(name), content]);
  const ends = [content.length, crc32(checked)].map((n) => toBytes([[n, 4]], { littleEndian: false }));
  return joinBytes([ends[0], checked, ends[1]]);
}

const CSV_COLUMNS = [
  "file", "height", "width", "lesion_pixels", "lesion_fraction", "num_regions", "mean_probability",
  "touches_border",
];

/** The rows of summary.csv, as `lesionseg predict` writes it. */
function toCsv(rows) {
  const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const show = (value) => {
    if (value === null) return "";
    if (typeof value === "boolean") return value ? "True" : "False";
    return quote(String(value));
  };
  const lines = rows.map((row) => CSV_COLUMNS.map((column) => show(row[column])).join(","));
  return `${[CSV_COLUMNS.join(","), ...lines].join("\n")}\n`;
}

/** A row of the table. */
function summarise(mask, { file, height, width, area, meanProbability, numRegions }) {
  const touches = (start, step, count) => {
    for (let k = 0; k < count; k += 1) if (mask[start + k * step]) return true;
    return false;
  };
  return {
    file,
    height,
    width,
    lesion_pixels: area,
    lesion_fraction: Number((area / (height * width)).toFixed(6)),
    num_regions: numRegions,
    mean_probability: meanProbability === null ? null : Number(meanProbability.toFixed(4)),
    touches_border:
      touches(0, 1, width) || touches((height - 1) * width, 1, width)
      || touches(0, width, height) || touches(width - 1, width, height),
  };
}

/** A ZIP archive of uncompressed files, by their names. */
function toZip(files) {
  const bodies = [];
  const directory = [];
  let place = 0;
  for (const [name, content] of Object.entries(files)) {
    const nameBytes = new TextEncoder().encode(name);
    // Version 2.0, names in UTF-8, stored, the first of January 1980.
    const common = [
      [20, 2], [0x0800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(content), 4], [content.length, 4],
      [content.length, 4], [nameBytes.length, 2], [0, 2],
    ];
    const head = toBytes([[0x04034b50, 4], ...common], { littleEndian: true });
    const entry = [[0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [place, 4]];
    bodies.push(head, nameBytes, content);
    directory.push(toBytes(entry, { littleEndian: true }), nameBytes);
    place += head.length + nameBytes.length + content.length;
  }
  const listing = joinBytes(directory);
  const num = Object.keys(files).length;
  const end = [
    [0x06054b50, 4], [0, 2], [0, 2], [num, 2], [num, 2], [listing.length, 4], [place, 4], [0, 2],
  ];
  return joinBytes([...bodies, listing, toBytes(end, { littleEndian: true })]);
}

/** The name of a file's outputs: without the extension, and unique. */
function outputName(file, taken) {
  const stem = file.replace(/\.[^.]*$/, "") || "image";
  let name = stem;
  for (let number = 2; taken.has(name); number += 1) name = `${stem}_${number}`;
  return name;
}
