"use strict";
// What physics.py and console.py say, in the browser: signals, rules, and where a slider stops. Times in s.
// A protocol has the fields of physics.Protocol: sequence, te, tr, ti, flip_angle_deg (null where there is none),
// as_published. tests/explorers/test_page.py holds every function here against its Python.

const NAMES = {ti: "TI", te: "TE", tr: "TR", flip_angle_deg: "flip angle"};
const inverts = sequence => ["MPRAGE", "FLAIR", "inversion-recovery gradient echo"].includes(sequence);
const hasFlipAngle = sequence => sequence.endsWith(" gradient echo");
const spoiled = sequence => hasFlipAngle(sequence) && !inverts(sequence);

/** What is left after `time`: exp(−time/relaxation). */
const decay = (time, relaxation) => Math.exp(-time / Math.max(relaxation, DATA.shortest_time));

/** Signed signal of a voxel: pd of water = 1, times in s, flip in radians (physics.signal). */
function signal(sequence, pd, t1, t2, te, tr, ti, flip) {
  const eTR = decay(tr, t1), eTE = decay(te, t2);
  if (sequence === "MPRAGE") return pd * (1 - 2 * decay(ti, t1) / (1 + eTR)) * eTE;
  if (sequence === "spin echo") return pd * (1 - eTR) * eTE;
  if (sequence === "FLAIR") return pd * (1 - 2 * decay(ti, t1) + eTR) * eTE;
  if (inverts(sequence)) return pd * Math.sin(flip) * (1 - 2 * decay(ti, t1) + eTR) / (1 + eTR * Math.cos(flip)) * eTE;
  return pd * Math.sin(flip) * (1 - eTR) / (1 - eTR * Math.cos(flip)) * eTE;
}

const radians = degrees => degrees * Math.PI / 180;
const signalOf = (p, [pd, t1, t2]) => signal(p.sequence, pd, t1, t2, p.te, p.tr, p.ti, radians(p.flip_angle_deg));

/** TI (s) at which tissue of this T1 (s) gives no signal. */
const nullTI = (t1, tr) => t1 * Math.log(2 / (1 + Math.exp(-tr / t1)));

/** Flip angle (°) at which a spoiled gradient echo of this tissue is brightest. */
const ernstAngle = (t1, tr) => Math.acos(Math.exp(-tr / t1)) * 180 / Math.PI;

const g = value => String(Number(value.toPrecision(6)));
const rounded = value => Number(value.toPrecision(3));

function describe(p) {
  let text = `${p.sequence}, TE ${g(1000 * p.te)} ms, TR ${g(p.tr)} s`;
  if (p.ti !== null) text += `, TI ${g(p.ti)} s`;
  return text + (p.flip_angle_deg === null ? "" : `, flip angle ${g(p.flip_angle_deg)}°`);
}

/** Why no scanner could run this, in one sentence; "" where one could (physics.Protocol). */
function problem(p) {
  if (!DATA.sequences.includes(p.sequence))
    return `unknown sequence '${p.sequence}': choose one of ${DATA.sequences.join(", ")}`;
  const wrong = (name, value, implausible) => {
    if (!Number.isFinite(value)) return `${name} must be a finite number of seconds, not ${value}`;
    if (value <= 0) return `${name} must be positive, not ${g(value)} s`;
    if (value < implausible) return "";
    return `${name} of ${g(value)} s looks like milliseconds: did you mean ${g(value / 1000)} s?`;
  };
  const times = wrong("TE", p.te, DATA.implausible.te) || wrong("TR", p.tr, DATA.implausible.tr);
  if (times) return times;
  if (p.te >= p.tr) return `TE ${g(p.te)} s is not shorter than TR ${g(p.tr)} s: the echo must come within TR`;
  if (hasFlipAngle(p.sequence)) {
    const angle = p.flip_angle_deg;
    if (!Number.isFinite(angle)) return `the flip angle must be a finite number of degrees, not ${angle}`;
    if (angle <= 0 || angle >= 180) return `the flip angle must lie between 0° and 180°, not at ${g(angle)}°`;
    if (angle < DATA.implausible.flip_angle_deg)
      return `a flip angle of ${g(angle)}° looks like radians: did you mean ${rounded(angle * 180 / Math.PI)}°?`;
  }
  if (!inverts(p.sequence)) return "";
  const inversion = wrong("TI", p.ti, DATA.implausible.tr);
  if (inversion || p.ti < p.tr || p.as_published) return inversion;
  return `TI ${g(p.ti)} s is not shorter than TR ${g(p.tr)} s, which runs between inversions`;
}

/** What this sequence lets one set, what makes its contrast first (console.set_by). */
function setBy(sequence) {
  return [...(inverts(sequence) ? ["ti"] : []), ...(hasFlipAngle(sequence) ? ["flip_angle_deg"] : []), "te", "tr"];
}

/** The protocol with one setting moved, held where no scanner could follow, and why ("" if not held): console.move. */
function move(p, name, value) {
  const moved = {...p, [name]: rounded(value), as_published: false};
  const times = Object.fromEntries(["te", "tr", "ti"].filter(n => moved[n] !== null).map(n => [n, moved[n]]));
  let [allowed, message] = stayPhysical(times, name);
  if (allowed.tr < DATA.tr_floor && !hasFlipAngle(p.sequence)) {
    [allowed] = stayPhysical({...allowed, tr: DATA.tr_floor}, "tr");
    message = `TR stops at ${g(allowed.tr)} s: only a gradient echo repeats faster.`;
  }
  return [{...moved, ...allowed}, message];
}

/** TE and TI below TR; the slider that was moved is the one that stops (console.stay_physical). */
function stayPhysical(times, moved) {
  const allowed = {...times}, others = Object.keys(times).filter(name => name !== "tr");
  let message = "";
  if (moved === "tr") {
    const longest = others.reduce((a, b) => times[b] > times[a] ? b : a);
    if (times.tr * DATA.just_inside < times[longest]) {
      allowed.tr = rounded(times[longest] / DATA.just_inside);
      message = `TR stops at ${g(allowed.tr)} s: it must be longer than ${NAMES[longest]} ${g(times[longest])} s.`;
    }
    return [allowed, message];
  }
  const why = {te: "the echo must come within the repetition", ti: "TR runs from inversion to inversion"};
  for (const name of others) {
    if (times[name] > times.tr * DATA.just_inside) {
      allowed[name] = rounded(times.tr * DATA.just_inside);
      message = `${NAMES[name]} stops at ${rounded(allowed[name])} s, below TR ${rounded(times.tr)} s: ${why[name]}.`;
    }
  }
  return [allowed, message];
}
