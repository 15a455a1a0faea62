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

// The product in words. Shares are of its logarithm, and only told where all factors pull the same way.
export function words(way, names, og) {
  const ending = stopped(way, names, og);
  if (way.last < 0) return 'No output gradients were measured at this step.';
  if (!way.parts.length) return ending || `Only ${names[way.last]} has an output gradient: nothing to compare.`;
  const logs = {};
  for (const { kind, factor } of way.parts) logs[kind] = (logs[kind] ?? 0) + Math.log10(factor);
  const total = Object.values(logs).reduce((sum, log) => sum + log, 0);
  const ratio = `The gradient reaching ${names[way.first]} is ${times(10 ** total)} that at ${names[way.last]}`;
  const product = Object.entries(logs).map(([kind, log]) => `${kind} ×${format(10 ** log)}`).join(', ');
  return [`${ratio} (${product}).`, shares(logs, total), ending].filter(Boolean).join(' ');
}

const times = (ratio) => (ratio < 1 ? `${format(ratio)} of` : `${format(ratio)} times`);

const NOUNS = { weights: 'the weights', activations: "the activations' slope", 'not split': 'not told apart' };

function shares(logs, total) {
  if (Math.abs(total) < Math.log10(2)) return 'It hardly changes on its way.';
  const change = total < 0 ? 'loss' : 'growth';
  const parts = Object.entries(logs).map(([kind, log]) => [NOUNS[kind], log / total]).sort((a, b) => b[1] - a[1]);
  if (Object.keys(logs).join() === 'not split') return 'Input gradients are missing, so it is not told who did it.';
  if (parts.at(-1)[1] < -0.005) {
    const against = parts.filter(([, share]) => share < 0).map(([noun]) => noun).join(' and ');
    return `All of the ${change} is ${parts[0][0]}; ${against} ${against.endsWith('s') ? 'work' : 'works'} against it.`;
  }
  const percent = parts.map(([, share]) => Math.round(100 * share));
  percent[0] += 100 - percent.reduce((sum, share) => sum + share, 0);
  const [first, ...rest] = parts.map(([noun], i) => [percent[i], noun]);
  return `${first[0]}\u00a0% of the ${change} is ${first[1]}${rest.map(([share, noun]) => `, ${share}\u00a0% ${noun}`).join('')}.`;
}

function stopped(way, names, og) {
  if (way.stop === null) return '';
  const name = names[way.stop];
  return og[way.stop] === 0
    ? `At ${name} the gradient is exactly zero; nothing passes it on its way down.`
    : `The gradient of ${name} holds NaN or infinities; from there on there are no factors.`;
}
