// The Gradient Flow page: loads what the user chose and draws it.

import { drawMap, drawProfile, lastEnd, svg } from './charts.js';
import { loadProfile, loadSeries, onReload } from './data.js';
import { build, h, QUANTITIES } from './page.js';
import { count, format, gradient, logScale, runStyle, shareScale, shorten, SPECIAL } from './scales.js';
import { columnsOf, extremes, hasBlocks, rowHead, rowsOf, spreads } from './rows.js';
import {
  allSteps, currentStep, drawable, flowOf, keyOf, loaded, loadOne, profiled, profileOf, range, shown, state,
} from './state.js';
import { drawTimes, loadTimes, moveTimes } from './time.js';
import { drawWaterfall } from './waterfall.js';

const SHOWN_AT_FIRST = 5;

const markMovers = []; // for each map, a function that moves its mark to a step
let page; // the elements that change

const percent = (x) => (Number.isFinite(x) ? `${Number((100 * x).toPrecision(3))} %` : format(x));
const formatted = (x) => (state.quantity === 'zero_fraction' ? percent(x) : format(x));

// --- the page ------------------------------------------------------------------------------------------------------

export async function render() {
  document.documentElement.lang = 'en';
  document.head.append(h('link', { rel: 'stylesheet', href: './style.css' }));
  followTheme();
  page = build({ slide, choose, numbers: drawNumbers, redraw: draw }, state.quantity);
  onReload(refresh);
  await refresh();
  window.addEventListener('resize', drawSoon);
}

// A class on the body of TensorBoard's page says whether it is dark.
function followTheme() {
  const { body } = window.parent.document;
  const follow = () => document.documentElement.classList.toggle('dark', body.classList.contains('dark-mode'));
  new MutationObserver(follow).observe(body, { attributes: true, attributeFilter: ['class'] });
  follow();
}

// --- the user's choices ------------------------------------------------------------------------------------------------

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
  clearTimeout(page.nextLook);
  if (!state.series.length) page.nextLook = setTimeout(refresh, 3000);
  await load();
}

// First a preview of every run, which is quick; then all of each run, one after the other.
async function load() {
  const id = ++state.loadId;
  const current = () => id === state.loadId;
  page.main.ariaBusy = true;
  const outdated = shown().filter((series) => loaded(series)?.stamp !== series.stamp);
  await Promise.all(outdated.map((series) => loadOne(series, !flowOf(series)).then(() => current() && drawSoon())));
  if (!current()) return;
  cancelAnimationFrame(nextFrame);
  draw();
  await loadProfiles();
  if (await loadTimes(shown(), current)) draw();
  const previews = shown().filter((series) => flowOf(series)?.complete === false);
  for (const [i, series] of previews.entries()) {
    if (!current()) return;
    page.status.textContent = `Showing a few steps; loading the rest of run ${i + 1} of ${previews.length} …`;
    await loadOne(series, false);
    if (!current()) return;
    draw();
    await loadProfiles();
  }
  if (!current()) return;
  page.status.textContent = '';
  page.main.ariaBusy = false;
}

let profilesLoading = false;
let reloadRequested = false;

// One request at a time. Of the steps asked for in the meantime only the last is loaded.
async function loadProfiles() {
  reloadRequested = profilesLoading;
  if (profilesLoading) return;
  profilesLoading = true;
  const step = currentStep();
  await Promise.all(drawable().map(async (series) => {
    try {
      state.profiles.set(keyOf(series), await loadProfile(series, step, flowOf(series).complete === false));
    } catch (error) {
      state.profiles.delete(keyOf(series));
      page.status.textContent = error.message;
    }
  }));
  profilesLoading = false;
  if (reloadRequested) await loadProfiles();
  else drawProfiles();
}

// --- drawing -------------------------------------------------------------------------------------------------------

let nextFrame = 0;

function drawSoon() {
  cancelAnimationFrame(nextFrame);
  nextFrame = requestAnimationFrame(draw);
}

function draw() {
  page.tip.hidden = true;
  drawRuns();
  page.filter.show(drawable());
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
  const thinned = drawable().filter((series) => flowOf(series).thinned);
  const most = Math.max(...thinned.map((series) => flowOf(series).samples));
  page.notice.textContent = thinned.length
    ? `TensorBoard keeps at most ${count(most)} steps of a run and drops others at random. ` +
      'To keep all, start it with: tensorboard --samples_per_plugin gradient_flow=0'
    : '';
}

// One scale for all runs, over the whole range of their values and of `more`, a list of arrays.
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
  const key = (style, label) => h('span', { class: 'key' }, h('span', { class: 'box', style }), label);
  const keys = special.map((kind) => key(stripes(kind), kind.label));
  const missing = key('background:var(--grid);border:1px solid var(--line)', 'not measured');
  page.legend.replaceChildren(ramp, ...keys, missing);
  const [name, meaning] = QUANTITIES[state.quantity];
  const thinned = drawable().some((series) => flowOf(series).samples > flowOf(series).starts.length);
  page.explained.textContent =
    `${name}: ${meaning}. Rows are layers, the first one on top; columns are training steps.` +
    (thinned ? ' A cell of several steps shows their largest value in its upper half, the smallest in its lower half.' : '') +
    (drawable().some(hasBlocks)
      ? ' A row with ▸ is a block of layers: the largest value of its layers is in its upper half, the smallest in its ' +
        'lower half. Click on its name to open it.' : '');
}

const LETTER_WIDTH = 6.4;

// The space for the layers' names is the same in all pictures.
function leftMargin() {
  const lengths = drawable().flatMap((series) => rowsOf(series).map(({ name }) => shorten(name).length));
  const longest = Math.max(5, ...lengths);
  return Math.round(18 + LETTER_WIDTH * longest);
}

function drawMaps() {
  markMovers.length = 0;
  const allSeries = shown();
  const flows = drawable().map(flowOf);
  const starts = flows.map((flow) => flow.starts);
  const extent = [Math.min(...starts.map(([first]) => first)), Math.max(...starts.map(lastEnd))];
  const common = { scale: scale(), extent, left: leftMargin(), pick, tip, format: formatted, redraw: draw };
  const cards = allSeries.map((series) =>
    h('div', { class: 'card', 'data-run': series.run }, heading(series), ...notes(series)));
  page.maps.replaceChildren(...cards);
  allSeries.forEach((series, i) => {
    const flow = flowOf(series);
    if (!flow || !series.layers.length) return;
    const box = h('div', { class: 'picture' });
    cards[i].append(box);
    const rows = rowsOf(series);
    if (!rows.length) {
      box.append(h('p', { class: 'muted' }, 'No layer has this in its name.'));
      return;
    }
    const { low, high } = flow.arrays;
    const arrays = { low: extremes(low, rows, false), high: extremes(high, rows, true) };
    const size = `${series.names.length} layers over ${count(flow.samples)} steps`;
    const description = `Flow map of ${label(series)}: ${QUANTITIES[state.quantity][0]} of ${size}`;
    markMovers.push(drawMap(box, box.clientWidth, { ...common, flow: { ...flow, arrays }, rows, description }));
  });
  drawTimes(page, drawable(), { ...common, heading });
}

const heading = (series) => h('h3', {}, swatch(series), h('span', {}, label(series)));

function notes(series) {
  const problem = loaded(series)?.problem;
  const texts = Object.values(series.notes).filter(Boolean).map(note);
  if (problem) texts.unshift(h('p', { class: 'problem', role: 'alert' }, problem));
  if (series.grouped) texts.push(h('p', { class: 'note muted' }, series.grouped));
  return texts;
}

// A text of the run from its first **bold** line on, without tables. The first sentence is shown, a click shows the rest.
function note(text) {
  const lines = text.split('\n').filter((line) => !line.startsWith('|'));
  const plain = lines.slice(Math.max(0, lines.findIndex((line) => line.startsWith('**')))).join('\n').trim();
  const end = plain.indexOf('. ') + 1;
  const sentence = end ? plain.slice(0, end) : plain;
  const first = sentence.split('**').map((part, i) => (i % 2 ? h('strong', {}, part) : part));
  if (!end) return h('p', { class: 'note muted' }, ...first);
  return h('details', { class: 'note muted' }, h('summary', {}, ...first), plain.slice(end));
}

function drawStep() {
  const steps = allSteps();
  const step = currentStep();
  const place = Math.max(0, steps.findLastIndex((candidate) => candidate <= step));
  page.slider.max = Math.max(0, steps.length - 1);
  page.slider.value = place;
  page.slider.setAttribute('aria-valuetext', `step ${steps[place] ?? 0}`);
  page.step.textContent = steps.length ? `${count(step)} of ${count(steps.at(-1))}` : '';
  markMovers.forEach((move) => move(step));
  moveTimes(step);
}

function drawProfiles() {
  const lines = profiled().map((series) => {
    const [rows, profile] = [columnsOf(series), profileOf(series)];
    const theory = profile.theory(state.quantity);
    const predicted = theory && spreads(theory, rows).map(([median]) => median);
    return { label: label(series), style: styleOf(series), rows, spreads: spreads(profile.values(state.quantity), rows), theory: predicted };
  });
  const rows = deepest() ? columnsOf(deepest()) : [];
  const theories = lines.flatMap(({ theory }) => (theory ? [theory] : []));
  const description = `${QUANTITIES[state.quantity][1]} of each layer at step ${count(currentStep())}`;
  const view = { lines, rows, scale: scale(theories), left: leftMargin(), description, tip, format: formatted, redraw: draw };
  page.profileText.textContent = [
    `${description}${otherSteps()}.`,
    theories.length ? 'Dashed: theory, before training.' : '',
    profiled().some(hasBlocks) ? 'A block is at the median of its layers; its line spans all of them.' : '',
    ...profiled().map((series) => profileOf(series).problem),
  ].filter(Boolean).join(' ');
  page.profile.replaceChildren();
  if (rows.length) drawProfile(page.profile, page.profile.clientWidth, view);
  drawNumbers();
  drawWaterfalls();
}

// The run with most layers. The rows of the others have its names.
const deepest = () => profiled().reduce((most, series) => (series.names.length > (most?.names.length ?? 0) ? series : most), null);

// A run without a sample at the chosen step shows its latest one before it.
function otherSteps() {
  const others = profiled().filter((series) => profileOf(series).step !== currentStep());
  return others.map((series) => `; ${label(series)}: step ${count(profileOf(series).step)}`).join('');
}

function drawNumbers() {
  const scrolled = page.numbers.querySelector('.scroll')?.scrollTop ?? 0;
  page.numbers.querySelector('.scroll')?.remove();
  if (!page.numbers.open) return;
  const columns = profiled().map((series) => spreads(profileOf(series).values(state.quantity), rowsOf(series)));
  const cell = (column, i) => (i < column.length ? formatted(column[i][0]) : '');
  const rows = (deepest() ? rowsOf(deepest()) : []).map((row, i) =>
    h('tr', {}, rowHead(row, draw), ...columns.map((column) => h('td', {}, cell(column, i)))));
  const head = h('tr', {}, h('th', {}, 'layer'), ...profiled().map((series) => h('th', { scope: 'col' }, label(series))));
  const table = h('table', {}, h('thead', {}, head), h('tbody', {}, ...rows));
  page.numbers.append(h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'The numbers' }, table));
  page.numbers.lastChild.scrollTop = scrolled;
}

function drawWaterfalls() {
  const waterfalls = profiled().map((series) => profileOf(series).waterfall);
  page.blockText.textContent = profiled().some(hasBlocks) && waterfalls.some(({ blocks }) => blocks.flat().length)
    ? 'A block has one bar for each kind of factor: the product of those in it and just behind it. ' : '';
  const levels = waterfalls.flatMap(({ bars, blocks }) => [...bars, ...blocks.flat()].flatMap(({ before, after }) => [before, after]));
  const scale = logScale(levels.reduce((a, b) => Math.min(a, b), 0.1), levels.reduce((a, b) => Math.max(a, b), 1));
  const cards = profiled().map((series, i) => {
    const text = h('p', { class: 'words' }, waterfalls[i].text);
    return h('div', { class: 'card', 'data-run': series.run }, heading(series), text);
  });
  page.waterfalls.replaceChildren(...cards);
  profiled().forEach((series, i) => {
    const rows = columnsOf(series);
    if (!waterfalls[i].bars.length || !rows.length) return;
    const box = h('div', { class: 'picture' });
    cards[i].append(box);
    drawWaterfall(box, box.clientWidth, {
      waterfall: waterfalls[i], rows, blocks: series.blocks, scale, left: leftMargin(), tip, redraw: draw,
    });
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
