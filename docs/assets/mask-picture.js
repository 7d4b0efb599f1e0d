// The interactive picture: a digit, what reaches the mask of a trained network's first layer, and what the mask lets through.
// Data: mask-data.js, written by docs/_build/mask_picture.py. No library, no network.
(() => {
  "use strict";
  const root = document.getElementById("mask-picture");
  const data = window.dcnMaskData;
  if (!root || !data) return;

  const [channels, height, width] = data.shape;
  const area = height * width;
  const gap = 2;
  const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const images = data.images.map(decode);
  const maps = data.maps.map((text) => Float32Array.from(decode(text), (value) => (value - 128) / 127));
  const places = Uint8Array.from(data.draws, (letter) => parseInt(letter, data.steps));

  // The entry of the stream that a neuron's place is read from, as sample_mask does it.
  const drawn = {
    neuron: (index) => places[index],
    channel: (index) => places[Math.floor(index / area)],
    shared: (index) => places[index % area],
    dropout: () => Math.floor(Math.random() * data.steps),
  };
  const state = { mode: "neuron", level: 6, image: 1, run: 1, mask: new Uint8Array(channels * area) };

  root.innerHTML = `
    <div class="mask-controls">
      <label for="mask-p">keep probability p: <output id="mask-p-shown" for="mask-p"></output></label>
      <input type="range" id="mask-p" min="1" max="${data.steps}" step="1" value="${state.level}">
      <fieldset><legend>mode</legend>${Object.keys(drawn)
        .map((mode) => `<label><input type="radio" name="mask-mode" value="${mode}"${mode === state.mode ? " checked" : ""}> ${mode}</label>`)
        .join(" ")}</fieldset>
      <fieldset><legend>image</legend>${data.classes
        .map((name, index) => `<label><input type="radio" name="mask-image" value="${index}"${index === state.image ? " checked" : ""}> ${name}</label>`)
        .join(" ")}</fieldset>
      <button type="button" class="md-button" id="mask-run">Run the image again</button>
    </div>
    <p id="mask-status" role="status"></p>
    <div class="mask-rows">
      <figure class="mask-image"><canvas role="img"></canvas><figcaption>image x</figcaption></figure>
      <figure><canvas role="img"></canvas><figcaption>norm(conv(x)), eight channels: violet is positive, orange negative</figcaption></figure>
      <figure><canvas role="img"></canvas><figcaption>mask M: white neurons exist</figcaption></figure>
      <figure><canvas role="img"></canvas><figcaption id="mask-result"></figcaption></figure>
    </div>`;
  const [imageCanvas, mapCanvas, maskCanvas, resultCanvas] = root.querySelectorAll("canvas");

  function grey(value) {
    const level = Math.round(255 * Math.min(Math.max(value, 0), 1));
    return [level, level, level];
  }

  function diverging(value) {
    const end = value < 0 ? [179, 88, 6] : [84, 39, 136];
    const share = Math.min(Math.abs(value), 1);
    return end.map((channel) => Math.round(247 + share * (channel - 247)));
  }

  // Draw maps side by side, a pixel a neuron; the style sheet enlarges them.
  function paint(canvas, count, colour, description) {
    canvas.width = count * (width + gap) - gap;
    canvas.height = height;
    canvas.setAttribute("aria-label", description);
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    for (let map = 0; map < count; map++) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const at = 4 * (y * canvas.width + map * (width + gap) + x);
          pixels.data.set([...colour(map * area + y * width + x), 255], at);
        }
      }
    }
    context.putImageData(pixels, 0, 0);
  }

  function draw() {
    for (let index = 0; index < state.mask.length; index++) {
      state.mask[index] = drawn[state.mode](index) < state.level ? 1 : 0;
    }
    show();
  }

  function show() {
    const { mask, mode, level, run } = state;
    const p = level / data.steps;
    const now = maps[state.image];
    const kept = mask.reduce((sum, bit) => sum + bit, 0);
    const scale = mode === "dropout" ? 1 / p : 1;
    const digit = data.classes[state.image];
    paint(imageCanvas, 1, (index) => grey(images[state.image][index] / 255), `A handwritten ${digit}`);
    paint(mapCanvas, channels, (index) => diverging(now[index]), `Eight feature maps of the ${digit}`);
    paint(maskCanvas, channels, (index) => grey(mask[index]), `The masks of the eight channels, ${kept} of ${mask.length} neurons white`);
    paint(resultCanvas, channels, (index) => grey(scale * mask[index] * now[index]), "The feature maps where the mask is white, black elsewhere");
    root.querySelector("#mask-p-shown").textContent = p.toFixed(2);
    root.querySelector("#mask-result").textContent =
      mode === "dropout" ? "relu(M · norm(conv(x)) / p), in training only" : "relu(M · norm(conv(x))), in training and in test";
    const share = `${kept.toLocaleString("en")} of ${mask.length.toLocaleString("en")} neurons (${((100 * kept) / mask.length).toFixed(1)} %)`;
    root.querySelector("#mask-status").textContent =
      mode === "dropout"
        ? `Run ${run}: dropout has drawn anew and kept ${share}. In test it keeps all.`
        : `Run ${run}: the mask keeps ${share}${run > 1 ? ", the same as in every run" : ""}.`;
  }

  root.addEventListener("input", (event) => {
    if (event.target.id === "mask-p") state.level = Number(event.target.value);
    if (event.target.name === "mask-mode") state.mode = event.target.value;
    if (event.target.name === "mask-image") state.image = Number(event.target.value);
    state.run = 1;
    event.target.name === "mask-image" && state.mode !== "dropout" ? show() : draw();
  });
  root.querySelector("#mask-run").addEventListener("click", () => {
    state.run += 1;
    draw();
  });
  // For the tests: the mask as text, a letter a neuron.
  root.mask = () => state.mask.join("");
  draw();
})();
