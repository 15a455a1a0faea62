// From the loss to the first layer, factor by factor: who took the gradient away.

import { format } from './scales.js';

// Output gradients (`og`) and input gradients (`ig`) of the layers in forward order become the factors of the way back.
// A part goes `from` a layer `to` one below (or stays in it, for its weights), from one level to the next; levels are
// relative to the output gradient of the last layer that has one. `stop` is the layer that is reached by no factor.
export function factors(og, ig) {
  let last = og.length - 1;
  while (last >= 0 && Number.isNaN(og[last])) last -= 1;
  const way = { last, first: last, parts: [], stop: null };
  if (last < 0) return way;
  if (!isNumber(og[last])) return { ...way, stop: last };
  for (let above = last, layer = last - 1; layer >= 0; layer -= 1) {
    if (Number.isNaN(og[layer])) continue;
    if (!isNumber(og[layer])) return { ...way, stop: layer };
    const levels = [og[above], ig[above], og[layer]].map((value) => value / og[last]);
    if (above === layer + 1 && isNumber(ig[above])) {
      way.parts.push(part('weights', above, above, levels[0], levels[1]));
      way.parts.push(part('activations', above, layer, levels[1], levels[2]));
    } else {
      way.parts.push(part('not split', above, layer, levels[0], levels[2]));
    }
    way.first = above = layer;
  }
  return way;
}

const isNumber = (value) => value > 0 && value < Infinity;

const part = (kind, from, to, before, after) => ({ kind, from, to, before, after, factor: after / before });

export function describe(part, names) {
  const what = {
    weights: `weights of ${names[part.from]}`,
    activations: `activation between ${names[part.to]} and ${names[part.from]}`,
    'not split': `between ${names[part.to]} and ${names[part.from]}, weights and activations together`,
  }[part.kind];
  return `${what}: ×${format(part.factor)}`;
}

// The product in words, and who made it: the shares are the verdict's, see waterfall.py.
export function words(way, names, og) {
  const ending = stopped(way, names, og);
  if (way.last < 0) return 'No output gradients were measured at this step.';
  if (!way.parts.length) return ending || `Only ${names[way.last]} has an output gradient: nothing to compare.`;
  const logs = {};
  for (const { kind, factor } of way.parts) logs[kind] = (logs[kind] ?? 0) + Math.log10(factor);
  const total = Object.values(logs).reduce((sum, log) => sum + log, 0);
  const ratio = `The gradient reaching ${names[way.first]} is ${times(10 ** total)} that at ${names[way.last]}`;
  const product = Object.entries(logs).map(([kind, log]) => `${kind} ×${format(10 ** log)}`).join(', ');
  return [`${ratio} (${product}).`, shares(way.parts, total), ending].filter(Boolean).join(' ');
}

const times = (ratio) => (ratio < 1 ? `${format(ratio)} of` : `${format(ratio)} times`);

const NOUNS = { weights: 'the weights', activations: "the activations' slope", 'not split': 'not told apart' };

// Of all factors that pull the way the whole goes, the share of each kind in the logarithm.
function shares(parts, total) {
  if (Math.abs(total) < Math.log10(2)) return 'It hardly changes on its way.';
  if (parts.every(({ kind }) => kind === 'not split')) return 'Input gradients are missing, so it is not told who did it.';
  const pulls = {};
  for (const { kind, factor } of parts) pulls[kind] = (pulls[kind] ?? 0) + Math.max(Math.sign(total) * Math.log10(factor), 0);
  const whole = Object.values(pulls).reduce((sum, pull) => sum + pull, 0);
  const sorted = Object.entries(pulls).sort((a, b) => b[1] - a[1]);
  const percent = sorted.map(([, pull]) => Math.round((100 * pull) / whole));
  percent[0] += 100 - percent.reduce((sum, share) => sum + share, 0);
  const [first, ...rest] = sorted.map(([kind], i) => [`${percent[i]}\u00a0%`, NOUNS[kind]]);
  const change = total < 0 ? 'weakening' : 'strengthening';
  return `${[`${first[0]} of the ${change} is ${first[1]}`, ...rest.map((part) => part.join(' '))].join(', ')}.`;
}

function stopped(way, names, og) {
  if (way.stop === null) return '';
  const name = names[way.stop];
  return og[way.stop] === 0
    ? `At ${name} the gradient is exactly zero; nothing passes it on its way down.`
    : `The gradient of ${name} holds NaN or infinities; from there on there are no factors.`;
}
