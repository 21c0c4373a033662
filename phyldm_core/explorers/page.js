"use strict";
// Paints what page_physics.js computes and hears the hand. DATA comes from page.py.

const $ = id => document.getElementById(id);
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const SETTINGS = {
  ti: {unit: "s", per: 1}, te: {unit: "ms", per: 1000}, tr: {unit: "s", per: 1}, flip_angle_deg: {unit: "°", per: 1},
};
const labelOf = name => `${NAMES[name]} (${SETTINGS[name].unit})`;
const EQUATIONS = {
  "MPRAGE": "S = PD · (1 − 2e<sup>−TI/T1</sup> / (1 + e<sup>−TR/T1</sup>)) · e<sup>−TE/T2</sup>",
  "spin echo": "S = PD · (1 − e<sup>−TR/T1</sup>) · e<sup>−TE/T2</sup>",
  "FLAIR": "S = PD · (1 − 2e<sup>−TI/T1</sup> + e<sup>−TR/T1</sup>) · e<sup>−TE/T2</sup>",
  "spoiled gradient echo":
    "S = PD · sin α · (1 − e<sup>−TR/T1</sup>) / (1 − cos α · e<sup>−TR/T1</sup>) · e<sup>−TE/T2</sup>",
  "inversion-recovery gradient echo": "S = PD · sin α · (1 − 2e<sup>−TI/T1</sup> + e<sup>−TR/T1</sup>) / " +
    "(1 + cos α · e<sup>−TR/T1</sup>) · e<sup>−TE/T2</sup>",
};
const PRESETS = {...DATA.clinic, ...DATA.paper};
const TISSUES = Object.entries(DATA.tissues);
const LEVELS = Object.fromEntries(
  Object.entries(DATA.levels).map(([name, values]) => [name, Float64Array.from(values)]));
const COLOURS = Object.fromEntries(
  Object.entries(DATA.colours).map(([name, c]) => [name, {...c, levels: bytes(c.levels), bar: bytes(c.bar)}]));
const OWN = "own setting";

const brains = new Map(Object.entries(DATA.brains).map(([name, stored]) => {
  const bits = bytes(stored.brain), maps = Object.fromEntries(Object.keys(LEVELS).map(m => [m, bytes(stored[m])]));
  const inside = Uint8Array.from(maps.PD, (_, i) => bits[i >> 3] >> (i & 7) & 1);
  return [name, {...maps, inside, shape: stored.shape, mm: stored.voxel_mm}];
}));

const side = (letter, protocol) =>
  ({letter, protocol, white: 1, image: $(`image-${letter}`), curve: $(`curve-${letter}`)});
const sides = [side("a", DATA.clinic["T1w MPRAGE"]), side("b", DATA.clinic["T2w spin echo"])];
const state = {
  brain: [...brains.keys()][0], two: false, set: 0, signed: false, follow: true, along: "ti", pixel: [0, 0],
};
const current = () => sides[state.set]; // whose controls are shown
const shown = () => state.two ? sides : [sides[0]];
/** What the curve of a protocol runs over: as chosen, where the protocol has it. */
const alongOf = p => setBy(p.sequence).includes(state.along) ? state.along : setBy(p.sequence)[0];

// The image -------------------------------------------------------------------------------------------------------

/** Signal of every pixel: two tables of exponentials over the levels of T1 and T2, then three look-ups a pixel. */
function signalImage(p, brain) {
  const flip = radians(p.flip_angle_deg), n = brain.PD.length, image = new Float32Array(n);
  const recovered = LEVELS.T1.map(t1 => signal(p.sequence, 1, t1, 1, 0, p.tr, p.ti, flip));
  const left = LEVELS.T2.map(t2 => decay(p.te, t2));
  for (let i = 0; i < n; i++) image[i] = LEVELS.PD[brain.PD[i]] * recovered[brain.T1[i]] * left[brain.T2[i]];
  return image;
}

/** 99.5th percentile of the magnitude in the brain, from 2,000 bins. */
function whiteOf(image, inside) {
  let top = 0, n = 0;
  for (let i = 0; i < image.length; i++) if (inside[i]) { n++; top = Math.max(top, Math.abs(image[i])); }
  if (!top) return 1;
  const bins = new Uint32Array(2001);
  for (let i = 0; i < image.length; i++) if (inside[i]) bins[Math.abs(image[i]) / top * 2000 | 0]++;
  let above = 0, bin = 2001;
  while (above <= 0.005 * n) above += bins[--bin];
  return (bin + 1) / 2000 * top;
}

function paintImage(at) {
  const brain = brains.get(state.brain), [rows, columns] = brain.shape, canvas = at.image.querySelector("canvas");
  at.signal = signalImage(at.protocol, brain);
  if (state.follow) at.white = whiteOf(at.signal, brain.inside);
  if (canvas.width !== columns || canvas.height !== rows) [canvas.width, canvas.height] = [columns, rows];
  const pixels = at.pixels?.width === columns && at.pixels.height === rows ? at.pixels : new ImageData(columns, rows);
  const grey = new Uint32Array(pixels.data.buffer), zero = state.signed ? 127.5 : 0, scale = (255 - zero) / at.white;
  for (let i = 0; i < grey.length; i++) {
    const value = zero + scale * (state.signed ? at.signal[i] : Math.abs(at.signal[i]));
    grey[i] = 0xff000000 | (brain.PD[i] ? Math.max(0, Math.min(255, value + 0.5 | 0)) * 0x010101 : 0);
  }
  canvas.getContext("2d").putImageData(at.pixels = pixels, 0, 0);
  canvas.setAttribute("aria-label", `Simulated image, ${state.brain}: ${describe(at.protocol)}`);
  const letter = state.two ? `<b>${at.letter.toUpperCase()}</b> ` : "";
  at.image.querySelector("figcaption").innerHTML = `${letter}${describe(at.protocol)}`;
  at.image.querySelector(".window").textContent = `signal ${state.signed ? "±" : "0 to "}${at.white.toFixed(3)}`;
}

/** Sizes and marks that depend on the brain alone. */
function fitFilm(film, brain) {
  const [rows, columns] = brain.shape, [mmY, mmX] = brain.mm;
  film.style.setProperty("--ratio", columns * mmX / (rows * mmY));
  const bar = film.querySelector(".bar");
  if (bar) bar.style.width = `${100 * 50 / (columns * mmX)}%`;
}

function paintMaps() {
  const brain = brains.get(state.brain), [rows, columns] = brain.shape;
  for (const figure of document.querySelectorAll(".maps figure")) {
    const canvas = figure.querySelector("canvas"), levels = brain[figure.dataset.map];
    [canvas.width, canvas.height] = [columns, rows];
    const pixels = new ImageData(columns, rows), colours = COLOURS[figure.dataset.map].levels;
    levels.forEach((level, i) => {
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = brain.PD[i] ? colours[3 * level + c] : 0;
      pixels.data[4 * i + 3] = 255;
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    canvas.setAttribute("aria-label", `Map of ${COLOURS[figure.dataset.map].label}, ${state.brain}`);
  }
  for (const film of document.querySelectorAll(".film")) fitFilm(film, brain);
}

// Numbers ---------------------------------------------------------------------------------------------------------

function pixelTissue() {
  const brain = brains.get(state.brain), [x, y] = state.pixel, i = y * brain.shape[1] + x;
  return brain.PD[i] ? ["PD", "T1", "T2"].map(m => LEVELS[m][brain[m][i]]) : null;
}

function paintNumbers() {
  const columns = [...TISSUES, ["pixel", pixelTissue()]], rows = [];
  const row = (head, of) => rows.push([head, ...columns.map(([, tissue]) => tissue ? of(tissue) : "–")]);
  row("PD (water = 1)", t => t[0].toFixed(2));
  row("T1 (s)", t => t[1].toFixed(2));
  row("T2 (ms)", t => (1000 * t[2]).toFixed(0));
  for (const {letter, protocol: p} of shown()) {
    const of = state.two ? `, ${letter.toUpperCase()}` : "";
    row(`signal${of}`, t => signalOf(p, t).toFixed(3).replace("-", "−"));
    if (inverts(p.sequence)) row(`null at TI (s)${of}`, t => nullTI(t[1], p.tr).toFixed(2));
    if (spoiled(p.sequence)) row(`Ernst angle (°)${of}`, t => ernstAngle(t[1], p.tr).toFixed(1));
  }
  const swatch = name => DATA.tissue_colours[name] ? `<i style="background:${DATA.tissue_colours[name]}"></i>` : "";
  document.querySelector(".numbers thead tr").innerHTML =
    `<th scope="col">tissue</th>` + columns.map(([name]) => `<th scope="col">${swatch(name)}${name}</th>`).join("");
  document.querySelector(".numbers tbody").innerHTML = rows.map(([head, ...cells]) =>
    `<tr><th scope="row">${head}</th>${cells.map(cell => `<td>${cell}</td>`).join("")}</tr>`).join("");
}

function paintCross() {
  const [rows, columns] = brains.get(state.brain).shape, [x, y] = state.pixel;
  for (const cross of document.querySelectorAll(".cross"))
    [cross.style.left, cross.style.top] = [`${100 * (x + 0.5) / columns}%`, `${100 * (y + 0.5) / rows}%`];
}

// Controls --------------------------------------------------------------------------------------------------------

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

const same = (a, b) => ["sequence", "te", "tr", "ti", "flip_angle_deg"].every(key => a[key] === b[key]);

function showControls() {
  const p = current().protocol, names = setBy(p.sequence);
  $("preset").value = Object.keys(PRESETS).find(name => same(PRESETS[name], p)) ?? OWN;
  $("sequence").value = p.sequence;
  for (const name of Object.keys(SETTINGS)) {
    const slider = $(name), typed = $(`${name}-typed`), {unit, per} = SETTINGS[name], value = p[name];
    slider.parentElement.hidden = value === null;
    $(`along-${name}`).parentElement.hidden = !names.includes(name);
    if (value === null) continue;
    slider.value = name === "flip_angle_deg" ? value : Math.log10(value);
    slider.setAttribute("aria-valuetext", `${g(per * value)} ${unit}`);
    typed.value = g(per * value);
  }
  $(`along-${alongOf(p)}`).checked = true;
  $("brain").value = state.brain;
  for (const name of ["two", "signed", "follow"]) $(name).checked = state[name];
  $("which").hidden = !state.two;
  document.querySelector(`[name=side][value="${state.set}"]`).checked = true;
  document.querySelector("main").classList.toggle("two", state.two);
  sides.forEach((at, k) => at.image.classList.toggle("set", k === state.set));
}

function repaint(all = true) {
  showControls();
  for (const at of all ? shown() : [current()]) { paintImage(at); paintCurve(at); }
  paintNumbers();
  paintCross();
  remember();
}

function show(protocol, message = "") {
  current().protocol = protocol;
  if (protocol.as_published && protocol.ti >= protocol.tr)
    message = `As published, TI ${g(protocol.ti)} s ≥ TR ${g(protocol.tr)} s: no scanner can run this.`;
  say(message, message !== "");
  repaint(false);
}

function set(name, value) {
  const [low, high] = DATA.ranges[name], {unit, per} = SETTINGS[name];
  if (!Number.isFinite(value)) return show(current().protocol, `${NAMES[name]} must be a number (${unit}).`);
  state.along = name;
  let [protocol, message] = move(current().protocol, name, Math.min(high, Math.max(low, value)));
  if (value < low * 0.999 || value > high * 1.001)
    message ||= `${NAMES[name]} goes from ${g(per * low)} to ${g(per * high)} ${unit} here.`;
  show(protocol, message);
}

function point(x, y) {
  const [rows, columns] = brains.get(state.brain).shape;
  state.pixel = [Math.max(0, Math.min(columns - 1, x)), Math.max(0, Math.min(rows - 1, y))];
  shown().forEach(paintCurve);
  paintNumbers();
  paintCross();
}

function showBrain() {
  const {shape: [rows, columns]} = brains.get(state.brain);
  state.pixel = [columns / 3 | 0, rows / 2.3 | 0];
  paintMaps();
}

// The link --------------------------------------------------------------------------------------------------------

const written = p => [p.sequence, p.te, p.tr, p.ti, p.flip_angle_deg].filter(part => part !== null).join(",");

function hash() {
  const {brain, two, signed, set, along} = state;
  const told = {a: written(sides[0].protocol), ...(two && {b: written(sides[1].protocol), set: sides[set].letter})};
  return "#" + new URLSearchParams({brain, ...told, along, ...(signed && {signed: 1})});
}

let asked;
/** The address bar follows, after the hand has rested: browsers allow few such changes a second. */
function remember() {
  clearTimeout(asked);
  asked = setTimeout(() => history.replaceState(null, "", hash()), 250);
}

function read(text) {
  const [sequence, te, tr, ...last] = text.split(",");
  const number = part => part === undefined ? NaN : Number(part);
  const p = {sequence, te: number(te), tr: number(tr), ti: inverts(sequence) ? number(last.shift()) : null,
             flip_angle_deg: hasFlipAngle(sequence) ? number(last.shift()) : null, as_published: false};
  return Object.values(PRESETS).find(preset => same(preset, p)) ?? p;
}

/** Settings of the address, and why they are none, in one sentence. */
function restore() {
  const told = new URLSearchParams(location.hash.slice(1));
  let wrong = "";
  sides.forEach(at => {
    if (!told.has(at.letter)) return;
    const protocol = read(told.get(at.letter)), why = problem(protocol);
    if (why) wrong = `Protocol ${at.letter.toUpperCase()} of the link: ${why}`;
    else at.protocol = protocol;
  });
  if (brains.has(told.get("brain"))) state.brain = told.get("brain");
  else if (told.has("brain")) wrong ||= `This file has no brain "${told.get("brain")}".`;
  [state.two, state.signed] = [told.has("b"), told.has("signed")];
  state.set = state.two && told.get("set") === "b" ? 1 : 0;
  if (told.get("along") in SETTINGS) state.along = told.get("along");
  showBrain();
  repaint();
  say(wrong, wrong !== "");
}

// At the start ----------------------------------------------------------------------------------------------------

function build() {
  const option = name => new Option(name, name);
  const group = (label, names) => {
    const made = Object.assign(document.createElement("optgroup"), {label});
    made.append(...names.map(option));
    return made;
  };
  $("preset").append(option(OWN), group("clinic", Object.keys(DATA.clinic)),
    group("the paper", Object.keys(DATA.paper)));
  $("sequence").append(...DATA.sequences.map(option));
  $("brain").append(...[...brains.keys()].map(option));
  for (const [name, {per}] of Object.entries(SETTINGS)) {
    const [low, high] = DATA.ranges[name], linear = name === "flip_angle_deg", end = linear ? Number : Math.log10;
    $("settings").insertAdjacentHTML("beforeend", `<div class="setting"><label for="${name}">${labelOf(name)}</label>
      <input type="number" id="${name}-typed" step="any" inputmode="decimal" aria-label="${labelOf(name)}, typed">
      <input type="range" id="${name}" min="${end(low)}" max="${end(high)}" step="${linear ? 1 : 0.01}"></div>`);
    $("along").insertAdjacentHTML("beforeend",
      `<label><input type="radio" name="along" id="along-${name}">${NAMES[name].replace(" angle", "")}</label>`);
    $(name).addEventListener("input", event => set(name, linear ? +event.target.value : 10 ** event.target.value));
    $(`${name}-typed`).addEventListener("change", ({target}) => set(name, target.value === "" ? NaN : target.value / per));
    $(`along-${name}`).addEventListener("change", () => { state.along = name; repaint(); });
  }
  for (const [name, {label, bar, ticks}] of Object.entries(COLOURS)) {
    const colours = Array.from({length: bar.length / 3}, (_, i) => `rgb(${bar.subarray(3 * i, 3 * i + 3)})`);
    document.querySelector(".maps").insertAdjacentHTML("beforeend", `<figure data-map="${name}"><figcaption>${label}
      </figcaption><div class="film"><canvas role="img"></canvas><span class="cross"></span></div>
      <span class="scale" style="background: linear-gradient(90deg, ${colours})"></span><div class="ticks">${
        ticks.map(([at, tick]) => `<span style="left:${100 * at}%">${tick}</span>`).join("")}</div></figure>`);
  }
  const apart = ({0: first, 1: second}) => `${(100 * (second / first - 1)).toFixed(1)} %`;
  $("steps").textContent = `The maps are kept in 8 bits: PD in steps of ${LEVELS.PD[1].toFixed(4)}, T1 of ${
    apart(LEVELS.T1)}, T2 of ${apart(LEVELS.T2)}.`;
}

function listen() {
  $("preset").addEventListener("change", ({target}) => target.value !== OWN && show(PRESETS[target.value]));
  $("sequence").addEventListener("change", ({target}) => show(DATA.usual[target.value]));
  $("brain").addEventListener("change", ({target}) => { state.brain = target.value; showBrain(); repaint(); });
  for (const name of ["two", "signed", "follow"]) {
    $(name).addEventListener("change", ({target}) => {
      state[name] = target.checked;
      if (!state.two) state.set = 0;
      repaint();
    });
  }
  document.querySelectorAll("[name=side]").forEach(radio =>
    radio.addEventListener("change", () => { state.set = +radio.value; say(""); repaint(); }));
  $("link").addEventListener("click", async () => {
    history.replaceState(null, "", hash());
    await navigator.clipboard?.writeText(location.href).then(() => say("The link is copied."), () => {});
    if (!$("status").textContent) say("The link is in the address bar.");
  });
  sides.forEach((at, k) => {
    const canvas = at.image.querySelector("canvas");
    const follow = event => {
      const box = canvas.getBoundingClientRect();
      const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      point(x * canvas.width | 0, y * canvas.height | 0);
    };
    canvas.addEventListener("pointermove", follow);
    canvas.addEventListener("pointerdown", event => {
      follow(event);
      if (!state.two || k === state.set) return;
      state.set = k;
      repaint();
    });
    canvas.addEventListener("keydown", event => {
      const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      if (!step) return;
      event.preventDefault();
      point(...state.pixel.map((place, axis) => place + step[axis] * (event.shiftKey ? 10 : 1)));
    });
  });
  window.addEventListener("hashchange", restore);
  const resized = new ResizeObserver(entries => entries.forEach(({target, contentRect}) => {
    const at = sides.find(({curve}) => curve.contains(target));
    at.box = contentRect;
    paintCurve(at);
  }));
  sides.forEach(({curve}) => resized.observe(curve.querySelector("svg")));
}

build();
listen();
restore();
