// Colours, axes, and how numbers and names are written.

// Viridis (van der Walt and Smith): equal steps look equal, in grey and to the colour-blind too.
const VIRIDIS = [
  '440154', '48186a', '472d7b', '424086', '3b528b', '33638d', '2c728e', '26828e', '21918c',
  '1fa088', '28ae80', '3fbc73', '5ec962', '84d44b', 'addc30', 'd8e219', 'fde725',
].map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));

const SHADES = Array.from({ length: 256 }, (_, i) => {
  const place = (i / 255) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[below].map((part, c) => Math.round(part + (place - below) * (VIRIDIS[below + 1][c] - part)));
});

export const shade = (share) => SHADES[Math.max(0, Math.min(255, Math.round(share * 255)))];

export const gradient = (direction) =>
  `linear-gradient(${direction}, ${VIRIDIS.map((rgb) => `rgb(${rgb})`).join(', ')})`;

// Cells whose value has no place on the scale: a colour with stripes. The kinds also differ in lightness and in the
// direction of the stripes, for the colour-blind. Of neighbouring cells the one with the higher rank is drawn on top.
export const SPECIAL = {
  zero: { label: 'exactly zero', plain: [0, 0, 0], stripe: [190, 190, 190], slope: 1, rank: 1 },
  nonfinite: { label: 'NaN or infinite', plain: [213, 0, 50], stripe: [255, 255, 255], slope: -1, rank: 2 },
};

export function special(value, scale) {
  if (value === Infinity) return SPECIAL.nonfinite;
  return value === 0 && scale.log ? SPECIAL.zero : null;
}

// Each run has its own colour (of style.css, after Okabe and Ito) and mark.
const COLOURS = 8;
const MARKS = [
  'M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0', 'M-4,-4h8v8h-8z', 'M0,-5l5,9h-10z', 'M0,-5.5l5,5.5l-5,5.5l-5,-5.5z',
  'M-5,-4h10l-5,9z', 'M-5,-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z',
];
export const runStyle = (place) => ({ colour: `var(--run-${place % COLOURS})`, mark: MARKS[place % MARKS.length] });

// A number in two digits: 0.19, 42, 1.4e-6.
export function format(x) {
  if (Number.isNaN(x)) return 'not measured';
  if (x === Infinity) return 'NaN or infinite';
  if (x === 0) return '0';
  if (x >= 0.00995 && x < 995) return String(Number(x.toPrecision(2)));
  return x.toExponential(1).replace('e+', 'e').replace('.0e', 'e');
}

// A scale maps values to 0..1 and has ticks {at, label}. A log scale ends at whole (if short, half) powers of ten.
export function logScale(low, high) {
  if (!(low > 0 && high >= low && high < Infinity)) [low, high] = [0.1, 1];
  let [from, to] = [Math.log10(low), Math.log10(high)];
  const parts = to - from < 1.5 ? 2 : 1;
  [from, to] = [Math.floor(from * parts + 1e-9) / parts, Math.ceil(to * parts - 1e-9) / parts];
  if (to === from) to = from + 1 / parts;
  const share = (value) => (Math.log10(value) - from) / (to - from);
  const ticks = (most) => {
    const stride = [1, 2, 3, 5, 10, 20].find((n) => (to - from) / n < most) ?? 40;
    const multiples = to - from < 2 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let e = Math.floor(from / stride) * stride; e <= to; e += stride) {
      for (const m of multiples) ticks.push({ at: share(m * 10 ** e), label: tick(m, e) });
    }
    return ticks.filter(({ at }) => at > -1e-9 && at < 1 + 1e-9);
  };
  return { log: true, share, ticks };
}

export function shareScale() {
  const at = [0, 0.25, 0.5, 0.75, 1];
  return { log: false, share: (value) => value, ticks: () => at.map((x) => ({ at: x, label: `${100 * x} %` })) };
}

const tick = (multiple, exponent) => (exponent === 0 ? String(multiple) : `${multiple}e${exponent}`);

export function stepTicks(from, to, most) {
  const rough = (to - from) / most || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const stride = Math.max(1, [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= rough));
  const steps = [];
  for (let step = Math.ceil(from / stride) * stride; step <= to; step += stride) steps.push(step);
  return steps;
}

export const count = (number) => number.toLocaleString('en');

export const LETTERS = 24; // of a name beside a picture

// A long name keeps its beginning and its end.
export function shorten(name, most = LETTERS) {
  if (name.length <= most) return name;
  const begin = Math.max(0, (most - 1) >> 1);
  const end = Math.max(0, most - 1 - begin);
  return `${name.slice(0, begin)}…${name.slice(name.length - end)}`;
}
