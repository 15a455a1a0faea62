// Draws the waterfall that the server computed, see waterfall.py.

import { layerFrame, picture, svg } from './charts.js';

// `view`: {waterfall, names, scale, left, tip}.
export function drawWaterfall(element, width, view) {
  const { text, bars, levels } = view.waterfall;
  const height = 220;
  const root = picture(element, width, height, text);
  const frame = layerFrame(root, { ...view, width, height });
  const half = frame.band / 2;
  for (const bar of bars) {
    const [from, to] = {
      weight: [frame.x(bar.start) - half, frame.x(bar.start)],
      activation: [frame.x(bar.end), frame.x(bar.end) + half],
      stream: [frame.x(bar.end), frame.x(bar.start) - half],
      unsplit: [frame.x(bar.end), frame.x(bar.start)],
    }[bar.kind];
    drawBar(root, bar, from, to, frame, view);
  }
  for (const [layer, value] of levels) {
    svg('circle', { cx: frame.x(layer), cy: frame.y(value), r: Math.min(3, 0.7 * half), class: 'level' }, root);
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
