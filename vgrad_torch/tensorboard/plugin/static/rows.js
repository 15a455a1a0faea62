// The rows of the pictures: layers, and blocks of layers that a click opens.

import { svg } from './charts.js';
import { h } from './page.js';
import { shorten } from './scales.js';
import { state } from './state.js';

const LEAST = 14; // pixels of a row, if there are blocks or a filter
const MOST = 200; // rows that are so high

// The rows of a series. A row is {name, title, from, to}, the layers from `from` to before `to`; that of a block also
// has `block`, its name, and `open`; a layer of an open block is `inside`. With a filter, the rows are the layers whose
// name has it.
export function rowsOf({ names, labels, layers, blocks }) {
  const layer = (i, name = names[i]) => ({ name, title: layers[i], full: labels[i], from: i, to: i + 1 });
  const words = state.filter.trim().toLowerCase();
  if (words) return names.map((_, i) => layer(i)).filter(({ full }) => full.toLowerCase().includes(words));
  const rows = [];
  let place = 0;
  for (const { name, start, end, inside } of blocks) {
    for (; place < start; place += 1) rows.push(layer(place));
    const open = state.open.has(name);
    const title = `${name}: ${end - start} layers`;
    rows.push({ name: `${open ? '▾' : '▸'} ${name}`, title, full: title, from: start, to: end, block: name, open });
    if (open) inside.forEach((short, i) => rows.push({ ...layer(start + i, short), inside: true }));
    place = end;
  }
  for (; place < names.length; place += 1) rows.push(layer(place));
  return rows;
}

// The rows of the profile and the waterfall, where the layers of an open block stand in place of the block.
export const columnsOf = (series) => rowsOf(series).filter(({ open }) => !open);

export const hasBlocks = (series) => series.blocks.length > 0 && !state.filter.trim();

export const anyBlock = (rows) => rows.some(({ block }) => block);

export const rowHeight = (rows) => ((anyBlock(rows) || state.filter.trim()) && rows.length < MOST ? LEAST : 2);

// The smallest, or if `upper` the largest, value of each row's layers.
export function extremes({ columns, values }, rows, upper) {
  const found = new Float32Array(rows.length * columns).fill(NaN);
  rows.forEach(({ from, to }, row) => {
    for (let i = from * columns; i < to * columns; i += 1) {
      const at = row * columns + (i % columns);
      if (Number.isNaN(found[at]) || (upper ? values[i] > found[at] : values[i] < found[at])) found[at] = values[i];
    }
  });
  return { rows: rows.length, columns, values: found };
}

// The median of each row's layers, and where they begin and end: [median, smallest, largest]. Of an even number of
// layers, it is the lower one of the two in the middle.
export const spreads = (values, rows) => rows.map(({ from, to }) => {
  const known = values.slice(from, to).filter((value) => !Number.isNaN(value)).sort();
  return known.length ? [known[(known.length - 1) >> 1], known[0], known.at(-1)] : [NaN, NaN, NaN];
});

// Opens or closes a block. The focus stays on its name in the same picture or table, if the name is still there.
function toggle(block, pressed, redraw) {
  const { localName, dataset: { from } } = pressed;
  const cards = () => [...document.querySelectorAll('.card')];
  const place = cards().findIndex((card) => card.contains(pressed));
  if (!state.open.delete(block)) state.open.add(block);
  redraw();
  const names = [...document.querySelectorAll('.toggle')].filter(({ dataset }) => dataset.block === block);
  const inCard = names.filter((name) => cards()[place]?.contains(name));
  const same = inCard.find((name) => name.localName === localName && name.dataset.from === from);
  (same ?? names[0])?.focus({ preventScroll: true });
}

function button({ block, from, open }, redraw) {
  const press = (event) => {
    if (event.type === 'keydown' && event.key !== 'Enter' && event.key !== ' ') return;
    event.preventDefault();
    toggle(block, event.currentTarget, redraw);
  };
  return { 'data-block': block, 'data-from': from, role: 'button', tabindex: 0, 'aria-expanded': String(open), press };
}

const hint = (row) => (row.block ? `${row.title}. Click to ${row.open ? 'close' : 'open'}.` : row.full);

// The name of a row in a picture; that of a block opens and closes it.
export function rowName(root, place, row, letters, redraw) {
  const { press, ...attributes } = row.block ? button(row, redraw) : {};
  const kind = `${place.class}${row.block ? ' toggle' : ''}${row.inside ? ' inside' : ''}`;
  const label = svg('text', { ...place, ...attributes, class: kind }, root, shorten(row.name, letters));
  svg('title', {}, label, hint(row));
  if (press) for (const type of ['click', 'keydown']) label.addEventListener(type, press);
}

// The same in a table.
export function rowHead(row, redraw) {
  const title = hint(row);
  if (!row.block) return h('th', { scope: 'row', title, class: row.inside ? 'inside' : false }, row.name);
  const { press, ...attributes } = button(row, redraw);
  const name = h('span', { ...attributes, title, class: 'toggle', onclick: press, onkeydown: press }, row.name);
  return h('th', { scope: 'row' }, name);
}

// A box that filters layers by name and a button that opens or closes all blocks.
export function filterBox(redraw) {
  const search = h('input', {
    type: 'search', id: 'filter', placeholder: 'part of a name', autocomplete: 'off', oninput: (event) => {
      state.filter = event.target.value;
      redraw();
    },
  });
  const all = h('button', {
    type: 'button', id: 'open-all', onclick: () => {
      const names = state.series.flatMap(({ blocks }) => blocks.map(({ name }) => name));
      state.open = new Set(state.open.size ? [] : names);
      redraw();
    },
  });
  const box = h('span', { id: 'filtering', hidden: true }, h('label', { for: 'filter' }, 'Layers with'), search, all);
  const show = (allSeries) => {
    box.hidden = !state.filter && !allSeries.some(({ grouped, blocks, names }) => grouped || blocks.length || names.length > 30);
    all.hidden = !allSeries.some(hasBlocks);
    all.textContent = state.open.size ? 'Close all blocks' : 'Open all blocks';
  };
  return { box, show };
}
