// Flow map and depth profile. Each is drawn into an element of a given width.

import { anyBlock, rowHeight, rowName } from './rows.js';
import { count, LETTERS, shade, special, stepTicks } from './scales.js';

const SVG = 'http://www.w3.org/2000/svg';
export const RIGHT = 20;
export const SPECIAL_SIZE = 5; // a cell of zeros or NaN is at least this many pixels wide and high

// An SVG element. Its content is text, never markup.
export function svg(name, attributes = {}, parent = null, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

// An image to a screen reader; with names of blocks among `rows`, which are buttons, a group.
export function picture(element, width, height, label, rows = []) {
  const role = anyBlock(rows) ? 'group' : 'img';
  return svg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role, 'aria-label': label }, element);
}

function title(parent, text) {
  svg('title', {}, parent, text);
}

// --- flow map ------------------------------------------------------------------------------------------------------

const MAP_BOTTOM = 22;
// At least a pixel for each half of a cell.
const rowsHeight = (rows) => Math.max(60, rowHeight(rows) * rows.length, Math.min(400, 22 * rows.length));

// `view`: {flow, rows, scale, extent: [first step, end], left, description, format, pick(step), tip(event, lines), redraw}.
// Returns a function that moves the mark of the chosen step.
export function drawMap(element, width, view) {
  const { flow, rows, extent, left } = view;
  const height = rowsHeight(rows);
  const inner = Math.max(width - left - RIGHT, 50);
  const ends = [...flow.starts.slice(1), lastEnd(flow.starts)];
  const x = (step) => left + ((step - extent[0]) / (extent[1] - extent[0])) * inner;
  const canvas = document.createElement('canvas');
  canvas.style.cssText = `left:${left}px;width:${inner}px;height:${height}px`;
  element.append(canvas);
  paint(canvas, inner, height, view, ends);
  const root = picture(element, width, height + MAP_BOTTOM, view.description, rows);
  if (anyBlock(rows)) divide(root, rows, left, inner, height);
  nameRows(root, rows, left, height, view.redraw);
  stepAxis(root, extent, x, left, inner, height);
  const mark = svg('path', { class: 'cursor' }, root);
  const area = svg('rect', { x: left, y: 0, width: inner, height, class: 'area' }, root);
  const at = (event) => {
    const box = area.getBoundingClientRect();
    const step = extent[0] + ((event.clientX - box.left) / box.width) * (extent[1] - extent[0]);
    const bucket = Math.max(0, flow.starts.findLastIndex((start) => start <= step));
    const layer = Math.floor(((event.clientY - box.top) / box.height) * rows.length);
    return { bucket: step < ends.at(-1) ? bucket : -1, layer: Math.max(0, Math.min(rows.length - 1, layer)) };
  };
  area.addEventListener('click', (event) => at(event).bucket >= 0 && view.pick(flow.steps[at(event).bucket]));
  area.addEventListener('mouseleave', () => view.tip(event, null));
  area.addEventListener('mousemove', (event) => {
    const { bucket, layer } = at(event);
    view.tip(event, bucket < 0 || !rows.length ? null : cellTip(view, ends, bucket, layer));
  });
  return (step) => mark.setAttribute('d', `M${x(step)},-1V${height + 4}`);
}

export const lastEnd = (starts) => starts.at(-1) + Math.max(1, starts.at(-1) - (starts.at(-2) ?? starts.at(-1) - 1));

function cellTip(view, ends, bucket, layer) {
  const { flow, rows } = view;
  const [low, high] = [flow.arrays.low, flow.arrays.high].map((m) => m.values[layer * m.columns + bucket]);
  const several = flow.samples > flow.starts.length && ends[bucket] - 1 > flow.starts[bucket];
  const first = count(flow.starts[bucket]);
  const steps = several ? `steps ${first} to ${count(ends[bucket] - 1)}` : `step ${first}`;
  const values = Object.is(low, high) ? view.format(low) : `${view.format(low)} to ${view.format(high)}`;
  return [...(rows[layer].block ? [] : [rows[layer].full]), rows[layer].title, `${steps}: ${values}`];
}

// Paints cell by cell in device pixels. The upper half of a cell shows the largest value of its steps, the lower half
// the smallest. Buckets that share a pixel are painted as one cell.
function paint(canvas, width, height, { flow, rows: layers, scale, extent }, ends) {
  const ratio = window.devicePixelRatio || 1;
  const [columns, rows] = [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const context = canvas.getContext('2d');
  const image = context.createImageData(columns, rows);
  const halves = halfRows(rows, layers.length);
  const column = (step) => Math.round(((step - extent[0]) / (extent[1] - extent[0])) * columns);
  const specialCells = [];
  for (let bucket = 0; bucket < flow.starts.length; ) {
    const from = column(flow.starts[bucket]);
    let next = bucket + 1;
    while (next < flow.starts.length && column(ends[next - 1]) <= from) next += 1;
    const to = Math.min(columns, Math.max(from + 1, column(ends[next - 1])));
    for (const { top, bottom, layer, upper } of halves) {
      const value = extreme(upper ? flow.arrays.high : flow.arrays.low, layer, bucket, next, upper);
      const kind = special(value, scale);
      if (kind) specialCells.push({ kind, box: widened(from, to, top, bottom, SPECIAL_SIZE * ratio) });
      else if (!Number.isNaN(value)) fill(image, [from, to, top, bottom], { plain: shade(scale.share(value)) });
    }
    bucket = next;
  }
  specialCells.sort((a, b) => a.kind.rank - b.kind.rank);
  for (const { kind, box } of specialCells) fill(image, box, kind);
  context.putImageData(image, 0, 0);
}

function halfRows(rows, layers) {
  const edge = (half) => Math.round((half * rows) / (2 * layers));
  return Array.from({ length: 2 * layers }, (_, half) => ({
    top: edge(half), bottom: edge(half + 1), layer: half >> 1, upper: half % 2 === 0,
  }));
}

function extreme(matrix, layer, from, to, upper) {
  let result = NaN;
  for (let i = layer * matrix.columns + from; i < layer * matrix.columns + to; i += 1) {
    const value = matrix.values[i];
    if (Number.isNaN(result) || (upper ? value > result : value < result)) result = value;
  }
  return result;
}

export function widened(left, right, top, bottom, least) {
  const [wide, high] = [right - left, bottom - top].map((size) => Math.max(0, Math.ceil((least - size) / 2)));
  return [left - wide, right + wide, top - high, bottom + high];
}

export function fill(image, [left, right, top, bottom], { plain, stripe, slope }) {
  const pixels = new Uint32Array(image.data.buffer);
  for (let y = Math.max(0, top); y < Math.min(image.height, bottom); y += 1) {
    for (let x = Math.max(0, left); x < Math.min(image.width, right); x += 1) {
      const striped = stripe && (((x + slope * y) % 6) + 6) % 6 < 1;
      pixels[y * image.width + x] = packed(striped ? stripe : plain);
    }
  }
}

const packed = ([red, green, blue]) => red | (green << 8) | (blue << 16) | (255 << 24);

// Lines between rows, as the halves of a block may differ more than two rows do.
function divide(root, rows, left, width, height) {
  const high = height / rows.length;
  if (high < 10) return;
  svg('path', { d: rows.slice(1).map((_, i) => `M${left},${(i + 1) * high}h${width}`).join(''), class: 'divide' }, root);
}

function nameRows(root, rows, left, height, redraw) {
  const high = height / rows.length;
  const stride = Math.ceil(13 / high);
  rows.forEach((row, i) => {
    if (i % stride && i !== rows.length - 1) return;
    if (i !== rows.length - 1 && i > rows.length - 1 - stride) return;
    rowName(root, { x: left - 6, y: (i + 0.5) * high, class: 'name end middle' }, row, LETTERS, redraw);
  });
}

export function stepAxis(root, extent, x, left, width, height) {
  svg('path', { d: `M${left},${height}h${width}`, class: 'axis' }, root);
  for (const step of stepTicks(extent[0], extent[1], width / 80)) {
    svg('path', { d: `M${x(step)},${height}v4`, class: 'axis' }, root);
    svg('text', { x: x(step), y: height + 16, class: 'tick center' }, root, count(step));
  }
}

// --- depth profile -------------------------------------------------------------------------------------------------

const BOTTOM = 26;
const TOP = 10;

// Draws bands of equal width for the layers with their names below, and an axis with a grid for the values.
export function layerFrame(root, { rows, left, width, height, scale, redraw, top = 0, bottom = 0 }) {
  const inner = width - left - RIGHT;
  const band = inner / Math.max(rows.length, 1);
  const x = (layer) => left + (layer + 0.5) * band;
  const [high, low] = [TOP + top, height - BOTTOM - bottom];
  const y = (value) => low - scale.share(value) * (low - high);
  for (const { at, label } of scale.ticks((low - high) / 24)) {
    const place = low - at * (low - high);
    svg('path', { d: `M${left},${place}h${inner}`, class: 'grid' }, root);
    svg('text', { x: left - 12, y: place, class: 'tick end middle' }, root, label);
  }
  const wide = Math.max(...rows.map(({ name }) => name.length), 1) * 6.6 + 8;
  const stride = Math.ceil(Math.min(wide, 90) / band);
  const letters = Math.floor((stride * band - 8) / 6.6);
  // The last row always has its name, inside the picture; a name that would touch it is left out.
  const half = ({ name }) => 3.3 * Math.min(name.length, letters);
  const last = rows.length - 1;
  const center = (i) => Math.min(x(i), width - half(rows[i]));
  rows.forEach((row, i) => {
    if (i !== last && (i % stride || center(i) + half(row) + 8 > center(last) - half(rows[last]))) return;
    rowName(root, { x: center(i), y: height - BOTTOM + 16, class: 'name center' }, row, letters, redraw);
  });
  return { x, y, band, inner, high, low };
}

// `view`: {lines: [{label, style, rows, spreads, theory}], rows, scale, left, description, tip, format, redraw}. For each
// row, `spreads` has the median, the smallest and the largest value of its layers.
export function drawProfile(element, width, view) {
  const height = 270;
  const root = picture(element, width, height, view.description, view.rows);
  const every = view.lines.flatMap(({ spreads }) => spreads.flat());
  const top = every.includes(Infinity) ? 20 : 0;
  const bottom = view.scale.log && every.includes(0) ? 20 : 0;
  const frame = layerFrame(root, { ...view, width, height, top, bottom });
  if (top) lane(root, 'NaN, ∞', TOP + 4, view.left, frame.inner);
  if (bottom) lane(root, '0', height - BOTTOM - 4, view.left, frame.inner);
  ramp(root, view.left - 7, frame.high, frame.low);
  const place = (value) => {
    if (value === Infinity) return TOP + 4;
    return value === 0 && view.scale.log ? height - BOTTOM - 4 : frame.y(value);
  };
  for (const { style, spreads, theory } of view.lines) {
    const values = spreads.map(([median]) => median);
    const stroke = { style: `stroke:${style.colour}` };
    if (theory) svg('path', { d: path(theory, frame.x, frame.y, view.scale), class: 'theory', ...stroke }, root);
    svg('path', { d: path(values, frame.x, frame.y, view.scale), class: 'line', ...stroke }, root);
  }
  view.lines.forEach((line) => drawMarks(root, line, frame, place, view));
}

// Draws the map's colours along the axis of values.
function ramp(root, x, high, low) {
  const slice = (low - high) / 32;
  for (let i = 0; i < 32; i += 1) {
    const fill = `rgb(${shade((i + 0.5) / 32)})`;
    svg('rect', { x, y: low - (i + 1) * slice, width: 4, height: slice + 0.5, fill }, root);
  }
}

function lane(root, label, y, left, width) {
  svg('path', { d: `M${left},${y}h${width}`, class: 'lane' }, root);
  svg('text', { x: left - 12, y, class: 'tick end middle' }, root, label);
}

// A line with gaps where there is no number to draw.
function path(values, x, y, scale) {
  let drawing = false;
  return Array.from(values, (value, i) => {
    const drawn = Number.isFinite(value) && (value > 0 || !scale.log);
    const command = drawn ? `${drawing ? 'L' : 'M'}${x(i).toFixed(1)},${y(value).toFixed(1)}` : '';
    drawing = drawn;
    return command;
  }).join('');
}

function drawMarks(root, { label, style, rows, spreads, theory }, frame, place, view) {
  const size = Math.min(1, Math.max(0.35, frame.band / 16));
  spreads.forEach(([value, low, high], i) => {
    if (Number.isNaN(value)) return;
    const several = rows[i].block !== undefined;
    const stroke = { class: 'span', style: `stroke:${style.colour}` };
    if (several) svg('path', { d: `M${frame.x(i)},${place(low)}V${place(high)}`, ...stroke }, root);
    const move = `translate(${frame.x(i).toFixed(1)},${place(value).toFixed(1)}) scale(${size})`;
    const mark = svg('path', { d: style.mark, transform: move, style: `fill:${style.colour}`, class: 'mark' }, root);
    const number = several
      ? `median ${view.format(value)}, from ${view.format(low)} to ${view.format(high)}` : view.format(value);
    const expected = theory ? [`theory: ${view.format(theory[i])}`] : [];
    mark.addEventListener('mousemove', (event) => view.tip(event, [label, rows[i].title, number, ...expected]));
    mark.addEventListener('mouseleave', (event) => view.tip(event, null));
  });
}
