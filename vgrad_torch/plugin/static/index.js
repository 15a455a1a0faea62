// The Gradient Flow page: what is chosen, what was loaded, and when it is drawn again.

import { drawMap, drawProfile, drawWaterfall, lastEnd, svg } from './charts.js';
import { loadFlow, loadProfile, loadSeries, onReload } from './data.js';
import { count, format, gradient, layerName, logScale, runStyle, shareScale, shorten, SPECIAL } from './scales.js';
import { factors, words } from './waterfall.js';

const QUANTITIES = {
  weight_gradient: ['weight gradients', 'log10 RMS of dL/dW'],
  output_gradient: ['output gradients', 'log10 RMS of dL/dz'],
  output: ['outputs', 'log10 RMS of z = Wx + b'],
  weight: ['weights', 'log10 RMS of W'],
  update_ratio: ['update ratio', 'log10 of RMS of the change of W over RMS of W'],
  zero_fraction: ['zero fraction', 'share of exact zeros in dL/dW'],
};
const SHOWN_AT_FIRST = 5;

const state = {
  series: [], limit: 0, quantity: 'weight_gradient', step: Infinity, // Infinity: the newest
  chosen: new Map(), // key of a series -> whether it is shown; the user's choice outlives a reload
  flows: new Map(), // key and quantity -> {stamp, flow} or {stamp, problem}
  profiles: new Map(), // key -> profile
  turn: 0, // of loading; what an older turn brings is dropped
};
const marks = []; // functions that move the maps' marks to a step
const page = {};

const keyOf = ({ run, tag }) => `${run}\n${tag}`;
const shown = () => state.series.filter((series) => state.chosen.get(keyOf(series)));
const loaded = (series) => state.flows.get(`${keyOf(series)}\n${state.quantity}`);
const flowOf = (series) => loaded(series)?.flow;
const drawable = () => shown().filter(flowOf);
const formatted = (x) => (state.quantity === 'zero_fraction' && Number.isFinite(x) ? `${Number((100 * x).toPrecision(3))} %` : format(x));

// An element; strings among its children are text, never markup.
function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== ''));
  return element;
}

// --- the page ------------------------------------------------------------------------------------------------------

export async function render() {
  document.documentElement.lang = 'en';
  document.head.append(h('link', { rel: 'stylesheet', href: './style.css' }));
  followTheme();
  build();
  onReload(refresh);
  await refresh();
  window.addEventListener('resize', drawSoon);
}

// The page around this one says by a class of its body whether it is dark.
function followTheme() {
  const { body } = window.parent.document;
  const follow = () => document.documentElement.classList.toggle('dark', body.classList.contains('dark-mode'));
  new MutationObserver(follow).observe(body, { attributes: true, attributeFilter: ['class'] });
  follow();
}

function build() {
  page.runs = h('div', { id: 'runs' });
  page.notice = h('p', { id: 'notice', role: 'status' });
  page.slider = h('input', { type: 'range', id: 'step', min: 0, max: 0, step: 1, oninput: slide });
  page.step = h('output', { for: 'step' });
  page.status = h('span', { id: 'status', class: 'muted', role: 'status' });
  page.explained = h('p', { class: 'muted' });
  page.legend = h('div', { class: 'keys', id: 'legend' });
  page.maps = h('div', { class: 'cards', id: 'maps' });
  page.profileWords = h('p', { class: 'muted' });
  page.profile = h('div', { class: 'picture' });
  page.numbers = h('details', { id: 'numbers', ontoggle: drawNumbers }, h('summary', {}, 'The numbers'));
  page.waterfalls = h('div', { class: 'cards', id: 'waterfalls' });
  page.tip = h('div', { id: 'tip', hidden: true });
  page.main = h('main', {}, stepBar(), mapSection(), profileSection(), waterfallSection());
  page.body = h('div', { id: 'page', hidden: true }, aside(), page.main);
  page.empty = emptyState();
  document.body.append(page.body, page.empty, page.tip);
}

function aside() {
  const choice = ([name, [label]]) => {
    const checked = name === state.quantity;
    const input = h('input', { type: 'radio', name: 'quantity', value: name, checked, onchange: () => choose(name) });
    return h('label', {}, input, h('span', {}, label));
  };
  const quantities = Object.entries(QUANTITIES).map(choice);
  return h('aside', {},
    h('fieldset', { id: 'quantities' }, h('legend', {}, 'Show'), ...quantities),
    h('fieldset', {}, h('legend', {}, 'Runs'), page.runs), page.notice);
}

const stepBar = () => h('div', { id: 'steps' }, h('label', { for: 'step' }, 'Step'), page.slider, page.step, page.status);

const mapSection = () => h('section', { id: 'flow' },
  h('header', {}, h('div', {}, h('h2', {}, 'Flow map'), page.explained), page.legend), page.maps);

const profileSection = () => h('section', { id: 'profile' },
  h('header', {}, h('div', {}, h('h2', {}, 'Depth profile'), page.profileWords)),
  h('div', { class: 'card' }, page.profile, page.numbers));

function waterfallSection() {
  const key = (kind, words) => h('span', { class: 'key' }, h('span', { class: 'box', style: `background:var(--${kind})` }), words);
  return h('section', { id: 'waterfall' },
    h('header', {},
      h('div', {}, h('h2', {}, 'Waterfall'),
        h('p', { class: 'muted' }, 'The gradient on its way from the last layer, right, to the first, left; log axis, 1 is the output gradient of the last layer.')),
      h('div', { class: 'keys' }, key('weights', 'weights'), key('activations', 'activation'), key('both', 'not split'))),
    page.waterfalls,
    h('p', { class: 'muted' },
      'Weights: RMS of a layer’s input gradient over RMS of its output gradient. Activation: RMS of a layer’s output gradient over RMS of the input gradient of the layer above. ' +
      'Their product is always the ratio of the ends. Where a model branches or adds (residual connections), a factor between two layers also holds what other paths bring, ' +
      'so only in a plain chain does it tell who took the gradient. Shares are of the logarithm.'));
}

function emptyState() {
  return h('div', { id: 'empty', hidden: true },
    h('h2', {}, 'No gradients here yet'),
    h('p', {}, 'No run in this log folder was written by vgrad_torch. Train a network that comes with it:'),
    h('pre', {}, 'vgrad train --act sigmoid\nvgrad train --act relu'),
    h('p', {}, 'or watch your own, by one line around your training loop:'),
    h('pre', {}, 'import vgrad_torch as vg\n\nwith vg.watch(model, optimizer, logdir="runs/mine"):\n    ...  # your loop'),
    h('p', { class: 'muted' }, 'This page looks again every few seconds.'));
}

// --- what is chosen ------------------------------------------------------------------------------------------------

function choose(quantity) {
  state.quantity = quantity;
  load();
}

function slide() {
  const steps = allSteps();
  pick(Number(page.slider.value) === steps.length - 1 ? Infinity : steps[page.slider.value]);
}

function pick(step) {
  state.step = step === allSteps().at(-1) ? Infinity : step;
  drawStep();
  loadProfiles();
}

const allSteps = () => [...new Set(drawable().flatMap((series) => flowOf(series).steps))].sort((a, b) => a - b);

const currentStep = () => Math.min(state.step, allSteps().at(-1) ?? 0);

// --- loading -------------------------------------------------------------------------------------------------------

async function refresh() {
  try {
    const { series, limit } = await loadSeries();
    Object.assign(state, { series, limit });
  } catch (error) {
    page.status.textContent = `TensorBoard does not answer: ${error.message}`;
    return;
  }
  let free = SHOWN_AT_FIRST - shown().length;
  for (const series of state.series) {
    if (!state.chosen.has(keyOf(series))) state.chosen.set(keyOf(series), free-- > 0);
  }
  page.body.hidden = !state.series.length;
  page.empty.hidden = state.series.length > 0;
  clearTimeout(page.again);
  if (!state.series.length) page.again = setTimeout(refresh, 3000);
  await load();
}

// First what is quick to have, then, run by run, all there is.
async function load() {
  const turn = ++state.turn;
  const current = () => turn === state.turn;
  page.main.ariaBusy = true;
  const wanted = shown().filter((series) => loaded(series)?.stamp !== series.stamp);
  await Promise.all(wanted.map((series) => loadOne(series, true).then(() => current() && drawSoon())));
  if (!current()) return;
  cancelAnimationFrame(drawing);
  draw();
  await loadProfiles();
  const rest = shown().filter((series) => flowOf(series)?.complete === false);
  for (const [i, series] of rest.entries()) {
    if (!current()) return;
    page.status.textContent = `A first look at a few steps; reading all of run ${i + 1} of ${rest.length} …`;
    await loadOne(series, false);
    if (!current()) return;
    draw();
    await loadProfiles();
  }
  if (!current()) return;
  page.status.textContent = '';
  page.main.ariaBusy = false;
}

async function loadOne(series, preview) {
  const { quantity } = state;
  const found = { stamp: series.stamp };
  try {
    found.flow = await loadFlow(series, quantity, preview);
    found.flow.range = range(Object.values(found.flow.arrays).map(({ values }) => values));
  } catch (error) {
    found.problem = error.message;
  }
  state.flows.set(`${keyOf(series)}\n${quantity}`, found);
}

let busy = false;
let again = false;

// One at a time: while one is under way, only the newest wish is remembered.
async function loadProfiles() {
  again = busy;
  if (busy) return;
  busy = true;
  const step = currentStep();
  await Promise.all(drawable().map(async (series) => {
    try {
      state.profiles.set(keyOf(series), await loadProfile(series, step, flowOf(series).complete === false));
    } catch (error) {
      state.profiles.delete(keyOf(series));
      page.status.textContent = error.message;
    }
  }));
  busy = false;
  if (again) await loadProfiles();
  else drawProfiles();
}

// --- drawing -------------------------------------------------------------------------------------------------------

let drawing = 0;

function drawSoon() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(draw);
}

function draw() {
  drawRuns();
  drawLegend();
  drawMaps();
  drawStep();
  drawProfiles();
}

const styleOf = (series) => runStyle(state.series.indexOf(series));

function label(series) {
  const several = state.series.filter(({ run }) => run === series.run).length > 1;
  return several ? `${series.run} (${series.tag})` : series.run;
}

function swatch(series) {
  const { mark, colour } = styleOf(series);
  const icon = svg('svg', { class: 'swatch', viewBox: '-6 -6 12 12', 'aria-hidden': 'true' });
  svg('path', { d: mark, style: `fill:${colour}` }, icon);
  return icon;
}

function drawRuns() {
  const focused = document.activeElement?.value;
  page.runs.replaceChildren(...state.series.map((series) => {
    const key = keyOf(series);
    const onchange = (event) => { state.chosen.set(key, event.target.checked); load(); };
    const input = h('input', { type: 'checkbox', value: key, checked: Boolean(state.chosen.get(key)), onchange });
    const line = h('label', {}, input, swatch(series), h('span', {}, label(series)));
    if (focused === key) queueMicrotask(() => input.focus());
    return line;
  }));
  const held = drawable().filter((series) => flowOf(series).thinned);
  page.notice.textContent = held.length
    ? `TensorBoard keeps at most ${count(Math.max(...held.map((series) => flowOf(series).samples)))} steps of such a run, drawn at random where there are more. To keep all: tensorboard --samples_per_plugin gradient_flow=0`
    : '';
}

// One scale for all runs: the whole range of what they hold.
function scale(more = []) {
  if (state.quantity === 'zero_fraction') return shareScale();
  const ranges = [...drawable().map((series) => flowOf(series).range), ...more.map((values) => range([values]))];
  const low = Math.min(...ranges.map((range) => range[0]));
  const high = Math.max(...ranges.map((range) => range[1]));
  return logScale(low, high);
}

// Smallest and largest of the positive finite numbers.
function range(arrays) {
  let [low, high] = [Infinity, 0];
  for (const values of arrays) {
    for (const value of values) {
      if (value > 0 && value < low) low = value;
      if (value > high && value < Infinity) high = value;
    }
  }
  return [low, high];
}

function drawLegend() {
  const ramp = h('span', { class: 'ramp' }, h('i', { style: `background:${gradient('to right')}` }));
  for (const { at, label } of scale().ticks(6)) ramp.append(h('span', { style: `left:${100 * at}%` }, label));
  const stripes = ({ plain, stripe, slope }) =>
    `background:repeating-linear-gradient(${-45 * slope}deg, rgb(${plain}) 0 4px, rgb(${stripe}) 4px 5px)`;
  const special = Object.values(SPECIAL).filter((kind) => state.quantity !== 'zero_fraction' || kind !== SPECIAL.zero);
  const keys = special.map((kind) => h('span', { class: 'key' }, h('span', { class: 'box', style: stripes(kind) }), kind.words));
  const nothing = h('span', { class: 'key' }, h('span', { class: 'box', style: 'background:var(--grid);border:1px solid var(--line)' }), 'not measured');
  page.legend.replaceChildren(ramp, ...keys, nothing);
  const [name, meaning] = QUANTITIES[state.quantity];
  const thinned = drawable().some((series) => flowOf(series).samples > flowOf(series).starts.length);
  page.explained.textContent = `${name}: ${meaning}; layers from first (top) to last, training steps to the right.` +
    (thinned ? ' Where a cell stands for several steps, its upper half is their largest value, its lower half the smallest.' : '');
}

const LETTER = 6.4;

// Layers' names begin at the same place in all pictures.
function leftMargin() {
  const longest = Math.max(5, ...drawable().flatMap(({ layers }) => layers.map((tag) => shorten(layerName(tag)).length)));
  return Math.round(18 + LETTER * longest);
}

function drawMaps() {
  marks.length = 0;
  const series = shown();
  const flows = drawable().map(flowOf);
  const extent = [Math.min(...flows.map(({ starts }) => starts[0])), Math.max(...flows.map(({ starts }) => lastEnd(starts)))];
  const common = scale();
  const cards = series.map((one) => h('div', { class: 'card', 'data-run': one.run }, heading(one), ...notes(one)));
  page.maps.replaceChildren(...cards);
  series.forEach((one, i) => {
    const flow = flowOf(one);
    if (!flow || !one.layers.length) return;
    const box = h('div', { class: 'picture' });
    cards[i].append(box);
    const names = one.layers.map(layerName);
    const words = `Flow map of ${label(one)}: ${QUANTITIES[state.quantity][0]} of ${names.length} layers over ${count(flow.samples)} steps`;
    const view = { flow, names, tags: one.layers, scale: common, extent, left: leftMargin(), words, pick, tip, format: formatted };
    marks.push(drawMap(box, box.clientWidth, view));
  });
}

const heading = (series) => h('h3', {}, swatch(series), h('span', {}, label(series)));

function notes(series) {
  const problem = loaded(series)?.problem;
  const found = Object.values(series.notes).map((text) => h('p', { class: 'note muted' }, text));
  return problem ? [h('p', { class: 'problem', role: 'alert' }, problem), ...found] : found;
}

function drawStep() {
  const steps = allSteps();
  const step = currentStep();
  const place = Math.max(0, steps.findLastIndex((one) => one <= step));
  page.slider.max = Math.max(0, steps.length - 1);
  page.slider.value = place;
  page.slider.setAttribute('aria-valuetext', `step ${steps[place] ?? 0}`);
  page.step.textContent = steps.length ? `${count(step)} of ${count(steps.at(-1))}` : '';
  marks.forEach((move) => move(step));
}

const profiled = () => drawable().filter((series) => state.profiles.has(keyOf(series)));
const profileOf = (series) => state.profiles.get(keyOf(series));

function drawProfiles() {
  const found = profiled().map((series) => ({
    label: label(series), style: styleOf(series), tags: series.layers,
    values: profileOf(series).of(state.quantity), theory: profileOf(series).theory(state.quantity),
  }));
  const longest = profiled().reduce((longest, { layers }) => (layers.length > longest.length ? layers : longest), []);
  const theories = found.flatMap(({ theory }) => (theory ? [theory] : []));
  const words = `${QUANTITIES[state.quantity][1]} against depth, step ${count(currentStep())}`;
  const view = { series: found, names: longest.map(layerName), scale: scale(theories), left: leftMargin(), words, tip, format: formatted };
  page.profileWords.textContent = words + others() + (theories.length ? '; dashed: theory' : '') + '.';
  page.profile.replaceChildren();
  if (longest.length) drawProfile(page.profile, page.profile.clientWidth, view);
  drawNumbers();
  drawWaterfalls();
}

// Runs that have no sample at this step show the latest before it.
function others() {
  const off = profiled().filter((series) => profileOf(series).step !== currentStep());
  return off.map((series) => `; ${label(series)}: step ${count(profileOf(series).step)}`).join('') +
    profiled().map((series) => profileOf(series).problem).filter(Boolean).map((problem) => `; ${problem}`).join('');
}

function drawNumbers() {
  page.numbers.querySelector('.scroll')?.remove();
  if (!page.numbers.open) return;
  const columns = profiled();
  const longest = columns.reduce((longest, { layers }) => (layers.length > longest.length ? layers : longest), []);
  const cell = (series, i) => (i < series.layers.length ? formatted(profileOf(series).of(state.quantity)[i]) : '');
  const rows = longest.map((tag, i) => h('tr', {}, h('th', { scope: 'row' }, layerName(tag)), ...columns.map((one) => h('td', {}, cell(one, i)))));
  const head = h('tr', {}, h('th', {}, 'layer'), ...columns.map((series) => h('th', { scope: 'col' }, label(series))));
  page.numbers.append(h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'The numbers' }, h('table', {}, h('thead', {}, head), h('tbody', {}, ...rows))));
}

function drawWaterfalls() {
  const ways = profiled().map((series) => {
    const [og, ig] = ['output_gradient', 'input_gradient'].map((name) => profileOf(series).of(name));
    return { series, og, ig, way: factors(og, ig), names: series.layers.map(layerName) };
  });
  const levels = ways.flatMap(({ way }) => way.parts.flatMap(({ before, after }) => [before, after]));
  const common = logScale(levels.reduce((a, b) => Math.min(a, b), 0.1), levels.reduce((a, b) => Math.max(a, b), 1));
  const cards = ways.map(({ series, way, names, og }) =>
    h('div', { class: 'card', 'data-run': series.run }, heading(series), h('p', { class: 'words' }, words(way, names, og))));
  page.waterfalls.replaceChildren(...cards);
  ways.forEach(({ og, ig, way, names }, i) => {
    if (!way.parts.length) return;
    const box = h('div', { class: 'picture' });
    cards[i].append(box);
    drawWaterfall(box, box.clientWidth, { og, ig, names, scale: common, left: leftMargin(), words: words(way, names, og), tip });
  });
}

function tip(event, lines) {
  page.tip.hidden = !lines;
  if (!lines) return;
  page.tip.textContent = [...new Set(lines)].join('\n');
  const box = page.tip.getBoundingClientRect();
  page.tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - box.width - 8)}px`;
  page.tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - box.height - 8)}px`;
}
