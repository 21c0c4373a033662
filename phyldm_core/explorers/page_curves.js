"use strict";
// Signal of each tissue, and of the pixel under the pointer, against one setting; drawn as SVG, anew at every step.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = {left: 46, right: 54, top: 8, bottom: 36}; // pixels
const POINTS = 120;
const spread = (low, high, at) => Array.from({length: POINTS}, (_, i) => at(low, high, i / (POINTS - 1)));
const linear = (low, high, share) => low + (high - low) * share;
const geometric = (low, high, share) => low * (high / low) ** share;

/** Values of the setting that the curve runs over, as readings.SignalCurves has them. */
function valuesAlong(p, name) {
  const [low, high] = DATA.ranges[name];
  if (name === "te") return spread(Math.min(low, 0.5 * p.tr), Math.min(p.tr, high), geometric);
  if (name === "ti") return spread(0, Math.max(p.tr, p.ti), linear);
  if (name === "flip_angle_deg") return spread(0, high, linear);
  return spread(Math.max(p.te, p.ti ?? 0), Math.max(spoiled(p.sequence) ? 0.2 : 8, 1.2 * p.tr), linear);
}

/** Round steps of which at most five fit between the two. */
function stepFor(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 5));
  return power * [1, 2, 5, 10].find(factor => factor * power * 5 >= (high - low) * 0.999);
}

/** Multiples of the step from `low` to `high`. */
function linearTicks(low, high) {
  const step = stepFor(low, high), first = Math.ceil(low / step - 1e-6), last = Math.floor(high / step + 1e-6);
  return Array.from({length: last - first + 1}, (_, i) => rounded((first + i) * step) || 0);
}

function logTicks(low, high) {
  const all = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) all.push(power, 2 * power, 5 * power);
  return all.map(rounded).filter(tick => tick >= low * 0.999 && tick <= high * 1.001);
}

const marksOf = (p, name, t1) =>
  name === "ti" ? nullTI(t1, p.tr) : name === "flip_angle_deg" && spoiled(p.sequence) ? ernstAngle(t1, p.tr) : NaN;

/** The elements of a curve, made once: axes, and for each tissue its lines, its dot and its name. */
function curveParts(at) {
  const svg = at.curve.querySelector("svg");
  const make = (tag, attributes, parent = svg) => {
    const element = parent.appendChild(document.createElementNS(SVG, tag));
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    return element;
  };
  const parts = {svg, axes: make("g", {}), readout: make("path", {class: "readout"}), lines: {}};
  for (const name of ["pixel", ...TISSUES.map(([tissue]) => tissue)]) {
    const colour = DATA.tissue_colours[name] ?? "var(--quiet)", stroke = `stroke:${colour}`;
    parts.lines[name] = {
      seen: make("path", {style: stroke}), below: make("path", {style: stroke, class: "below"}),
      mark: make("path", {style: stroke, class: "null"}), dot: make("circle", {r: 4, style: `fill:${colour}`}),
      name: make("text", {}),
    };
    parts.lines[name].name.innerHTML = `<tspan style="fill:${colour}">● </tspan>${name}`;
  }
  return parts;
}

function axes(xs, ys, x, y, box, label, per) {
  const bottom = box.height - MARGIN.bottom, right = box.width - MARGIN.right;
  const lines = [`M${MARGIN.left} ${MARGIN.top}V${bottom}H${right}`, `M${MARGIN.left} ${y(0)}H${right}`];
  const texts = [];
  let written = -Infinity; // where the last number stands: those that would touch it are left out
  for (const tick of xs) {
    lines.push(`M${x(tick)} ${bottom}v4`);
    if (x(tick) - written < 30) continue;
    written = x(tick);
    texts.push(`<text x="${x(tick)}" y="${bottom + 15}" text-anchor="middle">${g(per * tick)}</text>`);
  }
  for (const tick of ys) {
    lines.push(`M${MARGIN.left} ${y(tick)}h-4`);
    texts.push(`<text x="${MARGIN.left - 7}" y="${y(tick) + 4}" text-anchor="end">${g(tick).replace("-", "−")}</text>`);
  }
  const middle = (MARGIN.left + right) / 2;
  return `<path class="axis" d="${lines.join("")}"/>${texts.join("")}<text x="${middle}" y="${box.height - 4}"
    text-anchor="middle">${label}</text><text transform="translate(11 ${bottom / 2}) rotate(-90)"
    text-anchor="middle">signal (water = 1)</text>`;
}

function paintCurve(at) {
  if (!at.box?.width) return;
  const parts = at.parts ??= curveParts(at), {protocol: p, box} = at, name = at.along = alongOf(p);
  const values = valuesAlong(p, name), here = p[name], tissues = Object.fromEntries(TISSUES);
  tissues.pixel = pixelTissue();
  const size = state.signed ? Number : Math.abs;
  const curves = {};
  for (const [key, tissue] of Object.entries(tissues))
    if (tissue) curves[key] = {now: signalOf(p, tissue),
                               all: values.map(value => signalOf({...p, [name]: value}, tissue))};
  const every = Object.values(curves).flatMap(curve => [curve.now, ...curve.all]);
  const bottom = Math.min(0, ...every), top = Math.max(1e-3, ...every.map(size)), part = stepFor(bottom, top) / 4;
  const low = Math.floor(bottom / part) * part, high = Math.ceil(top / part) * part; // axes that seldom change
  const left = values[0], right = Math.max(values.at(-1), 1.02 * here);
  const [width, height] = [box.width - MARGIN.left - MARGIN.right, box.height - MARGIN.top - MARGIN.bottom];
  const pixels = number => Math.round(10 * number) / 10;
  const share = name === "te" ? v => Math.log(v / left) / Math.log(right / left) : v => (v - left) / (right - left);
  const x = value => pixels(MARGIN.left + width * share(value));
  const y = value => pixels(MARGIN.top + height * (high - value) / (high - low));
  const xs = (name === "te" ? logTicks : linearTicks)(left, right);
  const key = [name, left, right, low, high, width, height].join();
  if (key !== parts.key) parts.axes.innerHTML = axes(xs, linearTicks(low, high), x, y, box, labelOf(name), SETTINGS[name].per);
  parts.key = key;
  parts.readout.setAttribute("d", `M${x(here)} ${MARGIN.top}v${height}`);
  const path = (all, drawn) => all.map((v, i) => drawn(v) === null ? "" :
    `${i && drawn(all[i - 1]) !== null ? "L" : "M"}${x(values[i])} ${y(drawn(v))}`).join("");
  const ends = [];
  for (const [key, line] of Object.entries(parts.lines)) {
    const curve = curves[key], mark = marksOf(p, name, tissues[key]?.[1]);
    for (const element of Object.values(line)) element.style.display = curve ? "" : "none";
    if (!curve) continue;
    line.seen.setAttribute("d", path(curve.all, size));
    line.below.setAttribute("d", state.signed ? "" : path(curve.all, v => v < 0 ? v : null));
    line.mark.setAttribute("d", mark <= right ? `M${x(mark)} ${y(0) - 7}v14` : "");
    line.dot.setAttribute("cx", x(here));
    line.dot.setAttribute("cy", y(size(curve.now)));
    ends.push([y(size(curve.all.at(-1))), line.name]);
  }
  ends.sort(([a], [b]) => a - b); // names stay apart, and above the axis
  ends.forEach((end, i) => { if (i) end[0] = Math.max(end[0], ends[i - 1][0] + 12); });
  let lowest = MARGIN.top + height;
  for (const [end, text] of ends.reverse()) {
    text.setAttribute("x", box.width - MARGIN.right + 4);
    text.setAttribute("y", Math.min(end, lowest) + 4);
    lowest = Math.min(end, lowest) - 12;
  }
  at.curve.querySelector("figcaption").innerHTML =
    `${state.two ? `<b>${at.letter.toUpperCase()}</b> ` : ""}${EQUATIONS[p.sequence]}`;
  const told = Object.entries(curves).map(([key, {now}]) => `${key} ${now.toFixed(3)}`).join(", ");
  parts.svg.setAttribute("aria-label", `Signal against ${labelOf(name)}, ${describe(p)}. At the readout: ${told}`);
}
