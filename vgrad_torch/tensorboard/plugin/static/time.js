// The gradient through time of recurrent layers: a map by training step and time step, see time_map.py.

import { fill, lastEnd, picture, RIGHT, SPECIAL_SIZE, stepAxis, svg, widened } from './charts.js';
import { loadTime } from './data.js';
import { h } from './page.js';
import { count, format, gradient, logScale, shade, special, SPECIAL } from './scales.js';
import { keyOf, range } from './state.js';

const MOST = 8; // layers of a run that are shown
const HEIGHT = 200;
const BOTTOM = 22;
const LIMIT = 1e4; // shares beyond this, or below its inverse, have the colour of the scale's end

const times = new Map(); // key of a series and layer -> {stamp, map} or {stamp, problem}
const movers = []; // for each map, a function that shows a step

const shownLayers = (series) => (series.timed ?? []).slice(0, MOST);
const entryOf = (series, layer) => times.get(`${keyOf(series)}\n${layer}`);

// Loads what is missing or outdated, while `current()`. Returns whether anything was loaded.
export async function loadTimes(allSeries, current) {
  let found = false;
  for (const series of allSeries) {
    for (const layer of shownLayers(series)) {
      if (!current()) return false;
      if (entryOf(series, layer)?.stamp === series.stamp) continue;
      const entry = { stamp: series.stamp };
      try {
        entry.map = await loadTime(series, layer);
      } catch (error) {
        entry.problem = error.message;
      }
      times.set(`${keyOf(series)}\n${layer}`, entry);
      found = true;
    }
  }
  return found && current();
}

export const moveTimes = (step) => movers.forEach((move) => move(step));

// `view`: {extent, left, pick, tip, heading(series)}. Draws a card for each run that has such layers.
export function drawTimes(page, allSeries, view) {
  movers.length = 0;
  const timed = allSeries.filter((series) => shownLayers(series).some((layer) => entryOf(series, layer)));
  page.timeSection.hidden = !timed.length;
  page.times.replaceChildren();
  if (!timed.length) return;
  const maps = timed.flatMap((series) => shownLayers(series).map((layer) => entryOf(series, layer)?.map)).filter(Boolean);
  const scale = timeScale(maps);
  drawKeys(page.timeLegend, scale, maps);
  const cards = timed.map((series) => h('div', { class: 'card', 'data-run': series.run }, view.heading(series)));
  page.times.append(...cards);
  timed.forEach((series, i) => {
    for (const layer of shownLayers(series)) {
      const entry = entryOf(series, layer);
      if (entry?.problem) cards[i].append(h('p', { class: 'problem', role: 'alert' }, entry.problem));
      if (entry?.map) drawLayer(cards[i], { ...view, map: entry.map, scale });
    }
    const more = series.timed.length - MOST;
    if (more > 0) cards[i].append(h('p', { class: 'muted' }, `${count(more)} more layers are not shown.`));
  });
}

// From the smallest to the largest share, with 1 inside.
function timeScale(maps) {
  const [low, high] = range(maps.map(({ values }) => values.values));
  return logScale(Math.max(1 / LIMIT, Math.min(low, 1)), Math.min(LIMIT, Math.max(high, 1)));
}

function drawKeys(element, scale, maps) {
  const ramp = h('span', { class: 'ramp' }, h('i', { style: `background:${gradient('to right')}` }));
  for (const { at, label } of scale.ticks(6)) ramp.append(h('span', { style: `left:${100 * at}%` }, label));
  const key = (box, label) => h('span', { class: 'key' }, box, label);
  const line = (kind) => {
    const box = svg('svg', { class: 'sample', viewBox: '0 0 26 12', 'aria-hidden': 'true' });
    horizonLine(box, 'M0,6H26', kind);
    return box;
  };
  const all = maps.map(({ values }) => values.values);
  const occurs = { zero: all.some((x) => x.includes(0)), nonfinite: all.some((x) => x.includes(Infinity)) };
  const stripes = ({ plain, stripe, slope }) =>
    `background:repeating-linear-gradient(${-45 * slope}deg, rgb(${plain}) 0 4px, rgb(${stripe}) 4px 5px)`;
  const kinds = Object.keys(SPECIAL).filter((kind) => occurs[kind]).map((kind) => SPECIAL[kind]);
  const boxes = kinds.map((kind) => key(h('span', { class: 'box', style: stripes(kind) }), kind.label));
  if (all.some((x) => x.some(Number.isNaN))) {
    boxes.push(key(h('span', { class: 'box', style: 'background:var(--grid);border:1px solid var(--line)' }), 'shorter sequence'));
  }
  element.replaceChildren(ramp, key(line('tenth'), 'a tenth is left'), key(line('hundredth'), 'a hundredth is left'), ...boxes);
}

function horizonLine(root, d, kind) {
  svg('path', { d, class: 'horizon casing' }, root);
  svg('path', { d, class: `horizon ${kind}` }, root);
}

// The sentence of the chosen step, and below it the map.
function drawLayer(card, view) {
  const { map } = view;
  const words = h('p', { class: 'words' });
  const box = h('div', { class: 'picture time' });
  card.append(words, box);
  const mark = drawMap(box, box.clientWidth, view);
  movers.push((step) => {
    words.textContent = map.words[Math.max(0, map.steps.findLastIndex((each) => each <= step))];
    mark(step);
  });
}

function drawMap(element, width, { map, scale, extent, left, pick, tip }) {
  const inner = Math.max(width - left - RIGHT, 50);
  const ends = [...map.starts.slice(1), lastEnd(map.starts)];
  const share = (step) => (step - extent[0]) / (extent[1] - extent[0]);
  const x = (step) => left + share(step) * inner;
  const stride = (map.back[1] ?? 1) - map.back[0];
  const most = Math.log(1 + map.back.at(-1) + stride);
  const y = (back) => HEIGHT - (Math.log(1 + back) / most) * HEIGHT;
  const canvas = document.createElement('canvas');
  canvas.style.cssText = `left:${left}px;width:${inner}px;height:${HEIGHT}px`;
  element.append(canvas);
  paint(canvas, inner, { map, scale, ends, share, y, stride });
  const description = `Gradient through time of ${map.name} over ${count(map.samples)} steps`;
  const root = picture(element, width, HEIGHT + BOTTOM, description);
  timeAxis(root, { left, y, stride, longest: map.back.at(-1) });
  stepAxis(root, extent, x, left, inner, HEIGHT);
  for (const [kind, horizons] of [['tenth', map.tenths], ['hundredth', map.hundredths]]) {
    horizonLine(root, horizonPath(horizons, map.starts, ends, x, y), kind);
  }
  const mark = svg('path', { class: 'cursor' }, root);
  const area = svg('rect', { x: left, y: 0, width: inner, height: HEIGHT, class: 'area' }, root);
  const at = (event) => {
    const box = area.getBoundingClientRect();
    const step = extent[0] + ((event.clientX - box.left) / box.width) * (extent[1] - extent[0]);
    const back = Math.expm1((1 - (event.clientY - box.top) / box.height) * most);
    const row = Math.min(map.back.length - 1, Math.max(0, Math.floor(back / stride)));
    return { row, column: step < ends.at(-1) ? Math.max(0, map.starts.findLastIndex((start) => start <= step)) : -1 };
  };
  area.addEventListener('click', (event) => at(event).column >= 0 && pick(map.steps[at(event).column]));
  area.addEventListener('mouseleave', (event) => tip(event, null));
  area.addEventListener('mousemove', (event) => tip(event, cellTip(map, at(event))));
  return (step) => mark.setAttribute('d', `M${x(step)},-1V${HEIGHT + 4}`);
}

function cellTip(map, { row, column }) {
  if (column < 0) return null;
  const last = map.lasts[column] ?? map.lengths[column] - 1;
  const back = map.back[row];
  const value = map.values.values[row * map.values.columns + column];
  const place = back <= last
    ? `time step ${count(last - back + 1)} of ${count(map.lengths[column])}, ${count(back)} back: ${format(value)}`
    : `this sequence has ${count(map.lengths[column])} time steps`;
  return [map.name, `step ${count(map.steps[column])}`, place];
}

// Of the rows that share a pixel, the one nearest to the last time step is shown.
function paint(canvas, width, { map, scale, ends, share, y, stride }) {
  const ratio = window.devicePixelRatio || 1;
  const [columns, rows] = [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(HEIGHT * ratio)];
  const context = canvas.getContext('2d');
  const image = context.createImageData(columns, rows);
  const column = (step) => Math.round(share(step) * columns);
  const edge = (back) => Math.round((y(back) * rows) / HEIGHT);
  const specialCells = [];
  map.starts.forEach((start, bucket) => {
    const from = column(start);
    const to = Math.min(columns, Math.max(from + 1, column(ends[bucket])));
    let bottom = rows;
    map.back.forEach((back, row) => {
      const top = row === map.back.length - 1 ? 0 : edge(back + stride);
      const value = map.values.values[row * map.values.columns + bucket];
      const kind = special(value, scale);
      if (value === Infinity) specialCells.push({ kind, box: widened(from, to, top, bottom, SPECIAL_SIZE * ratio) });
      else if (top < bottom && kind) fill(image, [from, to, top, bottom], kind);
      else if (top < bottom && !Number.isNaN(value)) fill(image, [from, to, top, bottom], { plain: shade(scale.share(value)) });
      bottom = top;
    });
  });
  for (const { kind, box } of specialCells) fill(image, box, kind);
  context.putImageData(image, 0, 0);
}

function timeAxis(root, { left, y, stride, longest }) {
  let free = Infinity;
  const ticks = [0, 1, 2, 5].flatMap((digit) => (digit ? [0, 1, 2, 3, 4, 5, 6].map((e) => digit * 10 ** e) : [0]));
  for (const back of ticks.sort((a, b) => a - b)) {
    const place = (y(back) + y(back + stride)) / 2;
    if (back > longest || place > free - 14 || place < 5) continue;
    svg('text', { x: left - 6, y: place, class: 'tick end middle' }, root, back ? `−${count(back)}` : 'last');
    free = place;
  }
}

// A line below which more than that share is left; it has gaps where so little is never reached.
function horizonPath(horizons, starts, ends, x, y) {
  let previous = null;
  return horizons.map((back, i) => {
    const command = back === null ? '' : `${previous === null ? `M${x(starts[i])},${y(back)}` : `V${y(back)}`}H${x(ends[i])}`;
    previous = back;
    return command;
  }).join('');
}
