// Draws the waterfall that the server computed, see waterfall.py.

import { layerFrame, picture, svg } from './charts.js';
import { h } from './page.js';

// `view`: {waterfall, rows, blocks, scale, left, tip, redraw}. A block that is a row has its own bars; a layer that is no
// row has none.
export function drawWaterfall(element, width, view) {
  const { text, bars, levels, blocks } = view.waterfall;
  const has = ({ from, to, block }) => block !== undefined || levels.some(([layer]) => from <= layer && layer < to);
  if (!view.rows.some(has)) {
    element.append(h('p', { class: 'muted' }, 'The layers that are shown have no bars.'));
    return;
  }
  const height = 220;
  const root = picture(element, width, height, text, view.rows);
  const frame = layerFrame(root, { ...view, width, height });
  const half = frame.band / 2;
  const rowOf = (layer) => view.rows.findIndex(({ from, to }) => from <= layer && layer < to);
  for (const bar of bars) {
    const [start, end] = [rowOf(bar.start), rowOf(bar.end)];
    if (start < 0 || end < 0 || view.rows[end].block) continue;
    const [from, to] = {
      weight: [frame.x(start) - half, frame.x(start)],
      activation: [frame.x(end), frame.x(end) + half],
      stream: [frame.x(end), frame.x(start) - half],
      unsplit: [frame.x(end), frame.x(start)],
    }[bar.kind];
    drawBar(root, bar, from, to, frame, view);
  }
  view.rows.forEach(({ block, from: first }, row) => {
    const own = block === undefined ? [] : blocks[view.blocks.findIndex(({ start }) => start === first)];
    const wide = frame.band / Math.max(own.length, 1);
    own.forEach((bar, i) => {
      const right = frame.x(row) + half - i * wide;
      drawBar(root, bar, right - wide, right, frame, view);
    });
  });
  for (const [layer, value] of levels) {
    const row = rowOf(layer);
    if (row < 0 || view.rows[row].block) continue;
    svg('circle', { cx: frame.x(row), cy: frame.y(value), r: Math.min(3, 0.7 * half), class: 'level' }, root);
  }
}

function drawBar(root, bar, from, to, frame, view) {
  const [top, bottom] = [bar.before, bar.after].map(frame.y).sort((a, b) => a - b);
  const gap = to - from > 8 ? 1 : 0;
  const size = { x: from + gap, y: top, width: to - from - 2 * gap, height: Math.max(bottom - top, 1.5) };
  const rect = svg('rect', { ...size, class: `factor ${bar.kind}` }, root);
  rect.addEventListener('mousemove', (event) => view.tip(event, [bar.tip]));
  rect.addEventListener('mouseleave', (event) => view.tip(event, null));
  if (to - from < 34) return;
  const y = top > frame.high + 12 ? top - 4 : bottom + 11;
  svg('text', { x: (from + to) / 2, y, class: 'factor center' }, root, bar.number);
}
