// The network and its runtime, unpacked from the page itself.

/** The bytes of a data block of the page, which is base64 of gzip; the block is dropped. */
async function unpack(id, onBytes) {
  const block = document.getElementById(id);
  const text = atob(block.textContent.trim());
  block.remove();
  const packed = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k += 1) packed[k] = text.charCodeAt(k);
  const reader = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip")).getReader();
  const parts = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    onBytes(part.value.length);
  }
  return joinBytes(parts);
}

/**
 * The network, as a function from (size, size) RGB pixels to as many probabilities.
 *
 * @param onProgress Called with the share that is done, in [0, 1].
 */
async function loadNetwork({ imageSize, unpackedBytes }, onProgress) {
  let numBytes = 0;
  const onBytes = (num) => {
    numBytes += num;
    onProgress((0.8 * numBytes) / unpackedBytes);
  };
  const runtime = await unpack("runtime", onBytes);
  const model = await unpack("model", onBytes);
  ort.env.wasm.numThreads = 1; // more need a server's headers
  ort.env.wasm.wasmBinary = runtime;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  onProgress(1);
  return async (pixels) => {
    const images = new ort.Tensor("uint8", pixels, [1, imageSize, imageSize, 3]);
    const { probability } = await session.run({ images });
    return probability.data;
  };
}
