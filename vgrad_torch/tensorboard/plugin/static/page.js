// The parts of the page that are always there, and a function that makes elements.

import { filterBox } from './rows.js';

// Quantity -> its name, and the number that is drawn.
export const QUANTITIES = {
  weight_gradient: ['weight gradients', 'log10 RMS of dL/dW'],
  output_gradient: ['output gradients', 'log10 RMS of dL/dz'],
  output: ['outputs', 'log10 RMS of z = Wx + b'],
  weight: ['weights', 'log10 RMS of W'],
  update_ratio: ['update ratio', 'log10 of RMS(change of W in one step) / RMS(W)'],
  zero_fraction: ['zero fraction', 'share of exact zeros in dL/dW'],
};

// An element. Strings among its children are text, never markup.
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== ''));
  return element;
}

// Builds the page without data. `on` has the functions to call: slide(), choose(quantity), numbers(), redraw().
export function build(on, chosen) {
  const page = {};
  page.runs = h('div', { id: 'runs' });
  page.notice = h('p', { id: 'notice', role: 'status' });
  page.slider = h('input', { type: 'range', id: 'step', min: 0, max: 0, step: 1, oninput: on.slide });
  page.step = h('output', { for: 'step' });
  page.filter = filterBox(on.redraw);
  page.status = h('span', { id: 'status', class: 'muted', role: 'status' });
  page.explained = h('p', { class: 'muted' });
  page.legend = h('div', { class: 'keys', id: 'legend' });
  page.maps = h('div', { class: 'cards', id: 'maps' });
  page.profileText = h('p', { class: 'muted' });
  page.profile = h('div', { class: 'picture' });
  page.numbers = h('details', { id: 'numbers', ontoggle: on.numbers }, h('summary', {}, 'Show the numbers'));
  page.waterfalls = h('div', { class: 'cards', id: 'waterfalls' });
  page.blockText = h('span');
  page.tip = h('div', { id: 'tip', hidden: true });
  page.main = h('main', {}, stepBar(page), mapSection(page), timeSection(page), profileSection(page), waterfallSection(page));
  page.body = h('div', { id: 'page', hidden: true }, aside(page, on, chosen), page.main);
  page.empty = emptyState();
  document.body.append(page.body, page.empty, page.tip);
  return page;
}

function aside(page, on, chosen) {
  const choice = ([name, [label]]) => {
    const checked = name === chosen;
    const input = h('input', { type: 'radio', name: 'quantity', value: name, checked, onchange: () => on.choose(name) });
    return h('label', {}, input, h('span', {}, label));
  };
  const quantities = Object.entries(QUANTITIES).map(choice);
  return h('aside', {},
    h('fieldset', { id: 'quantities' }, h('legend', {}, 'Show'), ...quantities),
    h('fieldset', {}, h('legend', {}, 'Runs'), page.runs), page.notice);
}

const stepBar = (page) => h('div', { id: 'steps' }, h('label', { for: 'step' }, 'Step'), page.slider, page.step, page.filter.box, page.status);

const mapSection = (page) => h('section', { id: 'flow' },
  h('header', {}, h('div', {}, h('h2', {}, 'Flow map'), page.explained), page.legend), page.maps);

// Shown if a run has recurrent layers, see time.js.
function timeSection(page) {
  page.timeLegend = h('div', { class: 'keys' });
  page.times = h('div', { class: 'cards', id: 'times' });
  page.timeSection = h('section', { id: 'time', hidden: true },
    h('header', {}, h('div', {}, h('h2', {}, 'Gradient through time'),
      h('p', { class: 'muted' },
        'Norm of dL/dx at each time step of a recurrent layer’s input, of dL/dz at each call of a layer in a loop or each position of an embedding, ' +
        'relative to the last time step that the loss depends on; where it depends on several, relative to the ' +
        'largest norm. The last time step is at the bottom and −10 is ten steps earlier, on a log axis; columns are ' +
        'training steps, at most 240 of a run. Beyond the ends of the scale all shares have one colour. The layer can ' +
        'learn from the time steps below the lines.')), page.timeLegend), page.times);
  return page.timeSection;
}

const profileSection = (page) => h('section', { id: 'profile' },
  h('header', {}, h('div', {}, h('h2', {}, 'Depth profile'), page.profileText)),
  h('div', { class: 'card' }, page.profile, page.numbers));

function waterfallSection(page) {
  const key = (kind, label) =>
    h('span', { class: 'key' }, h('span', { class: 'box', style: `background:var(--${kind})` }), label);
  return h('section', { id: 'waterfall' },
    h('header', {},
      h('div', {}, h('h2', {}, 'Waterfall'),
        h('p', { class: 'muted' },
          'How each layer changes the gradient on its way from the last layer (right) to the first (left). ' +
          'Log axis; 1 is the output gradient of the last layer.')),
      h('div', { class: 'keys' }, key('weight', 'weights'), key('activation', 'activations'), key('stream', 'residual sums and joins'), key('unsplit', 'not split'))),
    page.waterfalls,
    h('p', { class: 'muted' }, page.blockText,
      'Weights: RMS of a layer’s input gradient over RMS of its output gradient. Activations: RMS of a layer’s output ' +
      'gradient over RMS of the next layer’s input gradient. Not split: both together, where an input gradient is missing. ' +
      'Shares are shares of the logarithm. In a model with branches or residual connections, a factor also includes the ' +
      'gradient that arrives on other paths, so it does not show the effect of one layer alone.'));
}

function emptyState() {
  return h('div', { id: 'empty', hidden: true },
    h('h2', {}, 'No gradients here yet'),
    h('p', {}, 'No run in this log folder holds gradients from vgrad_torch. Train one of its networks:'),
    h('pre', {}, 'vgrad train --act sigmoid\nvgrad train --act relu'),
    h('p', {}, 'Or watch your own model with one line around your training loop:'),
    h('pre', {}, 'import vgrad_torch as vg\n\nwith vg.watch(model, optimizer, logdir="runs/mine"):\n    ...  # your loop'),
    h('p', { class: 'muted' }, 'This page looks again every few seconds.'));
}
