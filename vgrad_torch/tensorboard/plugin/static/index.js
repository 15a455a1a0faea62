// The Gradient Flow page: what is chosen, what was loaded, and when it is drawn again.

import { drawMap, drawProfile, drawWaterfall, lastEnd, svg } from './charts.js';
import { loadProfile, loadSeries, onReload } from './data.js';
import { build, h, QUANTITIES } from './page.js';
import { count, format, gradient, layerName, logScale, runStyle, shareScale, shorten, SPECIAL } from './scales.js';
import {
  allSteps, currentStep, drawable, flowOf, keyOf, loaded, loadOne, profiled, profileOf, range, shown, state,
} from './state.js';
import { factors, words } from './waterfall.js';

const SHOWN_AT_FIRST = 5;

const marks = []; // functions that move the maps' marks to a step
let page; // its elements that change

const percent = (x) => (Number.isFinite(x) ? `${Number((100 * x).toPrecision(3))} %` : format(x));
const formatted = (x) => (state.quantity === 'zero_fraction' ? percent(x) : format(x));

// --- the page ------------------------------------------------------------------------------------------------------

export async function render() {
  document.documentElement.lang = 'en';
  document.head.append(h('link', { rel: 'stylesheet', href: './style.css' }));
  followTheme();
  page = build({ slide, choose, numbers: drawNumbers }, state.quantity);
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

// --- loading -------------------------------------------------------------------------------------------------------

async function refresh() {
  try {
    state.series = (await loadSeries()).series;
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
  await Promise.all(wanted.map((series) => loadOne(series, !flowOf(series)).then(() => current() && drawSoon())));
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
  page.tip.hidden = true;
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
  const most = Math.max(...held.map((series) => flowOf(series).samples));
  page.notice.textContent = held.length
    ? `TensorBoard keeps at most ${count(most)} steps of such a run, drawn at random where there are more. ` +
      'To keep all: tensorboard --samples_per_plugin gradient_flow=0'
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

function drawLegend() {
  const ramp = h('span', { class: 'ramp' }, h('i', { style: `background:${gradient('to right')}` }));
  for (const { at, label } of scale().ticks(6)) ramp.append(h('span', { style: `left:${100 * at}%` }, label));
  const stripes = ({ plain, stripe, slope }) =>
    `background:repeating-linear-gradient(${-45 * slope}deg, rgb(${plain}) 0 4px, rgb(${stripe}) 4px 5px)`;
  const special = Object.values(SPECIAL).filter((kind) => state.quantity !== 'zero_fraction' || kind !== SPECIAL.zero);
  const key = (style, words) => h('span', { class: 'key' }, h('span', { class: 'box', style }), words);
  const keys = special.map((kind) => key(stripes(kind), kind.words));
  const nothing = key('background:var(--grid);border:1px solid var(--line)', 'not measured');
  page.legend.replaceChildren(ramp, ...keys, nothing);
  const [name, meaning] = QUANTITIES[state.quantity];
  const thinned = drawable().some((series) => flowOf(series).samples > flowOf(series).starts.length);
  page.explained.textContent = `${name}: ${meaning}; layers from first (top) to last, training steps to the right.` +
    (thinned ? ' Of several steps in a cell its upper half shows the largest value, its lower half the smallest.' : '');
}

const LETTER = 6.4;

// Layers' names begin at the same place in all pictures.
function leftMargin() {
  const lengths = drawable().flatMap(({ layers }) => layers.map((tag) => shorten(layerName(tag)).length));
  const longest = Math.max(5, ...lengths);
  return Math.round(18 + LETTER * longest);
}

function drawMaps() {
  marks.length = 0;
  const series = shown();
  const flows = drawable().map(flowOf);
  const starts = flows.map((flow) => flow.starts);
  const extent = [Math.min(...starts.map(([first]) => first)), Math.max(...starts.map(lastEnd))];
  const common = { scale: scale(), extent, left: leftMargin(), pick, tip, format: formatted };
  const cards = series.map((one) => h('div', { class: 'card', 'data-run': one.run }, heading(one), ...notes(one)));
  page.maps.replaceChildren(...cards);
  series.forEach((one, i) => {
    const flow = flowOf(one);
    if (!flow || !one.layers.length) return;
    const box = h('div', { class: 'picture' });
    cards[i].append(box);
    const names = one.layers.map(layerName);
    const size = `${names.length} layers over ${count(flow.samples)} steps`;
    const words = `Flow map of ${label(one)}: ${QUANTITIES[state.quantity][0]} of ${size}`;
    marks.push(drawMap(box, box.clientWidth, { ...common, flow, names, tags: one.layers, words }));
  });
}

const heading = (series) => h('h3', {}, swatch(series), h('span', {}, label(series)));

function notes(series) {
  const problem = loaded(series)?.problem;
  const found = Object.values(series.notes).map(note);
  return problem ? [h('p', { class: 'problem', role: 'alert' }, problem), ...found] : found;
}

// A text of the run without its tables, **words** in bold; what follows the first sentence can be unfolded.
function note(text) {
  const words = text.split('\n').filter((line) => !line.startsWith('|')).join('\n').trim();
  const end = words.indexOf('. ') + 1;
  const first = (end ? words.slice(0, end) : words).split('**').map((part, i) => (i % 2 ? h('strong', {}, part) : part));
  return end ? h('details', { class: 'note muted' }, h('summary', {}, ...first), words.slice(end)) : h('p', { class: 'note muted' }, ...first);
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

function drawProfiles() {
  const found = profiled().map((series) => ({
    label: label(series), style: styleOf(series), tags: series.layers,
    values: profileOf(series).of(state.quantity), theory: profileOf(series).theory(state.quantity),
  }));
  const longest = profiled().reduce((longest, { layers }) => (layers.length > longest.length ? layers : longest), []);
  const theories = found.flatMap(({ theory }) => (theory ? [theory] : []));
  const words = `${QUANTITIES[state.quantity][1]} against depth, step ${count(currentStep())}`;
  const view = { series: found, names: longest.map(layerName), scale: scale(theories), left: leftMargin(), words, tip };
  page.profileWords.textContent = words + others() + (theories.length ? '; dashed: theory, before training' : '') + '.';
  page.profile.replaceChildren();
  if (longest.length) drawProfile(page.profile, page.profile.clientWidth, { ...view, format: formatted });
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
  const rows = longest.map((tag, i) =>
    h('tr', {}, h('th', { scope: 'row' }, layerName(tag)), ...columns.map((one) => h('td', {}, cell(one, i)))));
  const head = h('tr', {}, h('th', {}, 'layer'), ...columns.map((series) => h('th', { scope: 'col' }, label(series))));
  const table = h('table', {}, h('thead', {}, head), h('tbody', {}, ...rows));
  page.numbers.append(h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'The numbers' }, table));
}

function drawWaterfalls() {
  const ways = profiled().map((series) => {
    const [og, ig] = ['output_gradient', 'input_gradient'].map((name) => profileOf(series).of(name));
    return { series, og, ig, way: factors(og, ig), names: series.layers.map(layerName) };
  });
  const levels = ways.flatMap(({ way }) => way.parts.flatMap(({ before, after }) => [before, after]));
  const common = logScale(levels.reduce((a, b) => Math.min(a, b), 0.1), levels.reduce((a, b) => Math.max(a, b), 1));
  const told = ({ way, names, og }) => words(way, names, og);
  const cards = ways.map((one) =>
    h('div', { class: 'card', 'data-run': one.series.run }, heading(one.series), h('p', { class: 'words' }, told(one))));
  page.waterfalls.replaceChildren(...cards);
  ways.forEach((one, i) => {
    if (!one.way.parts.length) return;
    const box = h('div', { class: 'picture' });
    cards[i].append(box);
    drawWaterfall(box, box.clientWidth, { ...one, scale: common, left: leftMargin(), words: told(one), tip });
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
