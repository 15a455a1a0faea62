// The parts of the page that are always there, and how an element is made.

// What can be shown -> its name, and what is drawn of it.
export const QUANTITIES = {
  weight_gradient: ['weight gradients', 'log10 RMS of dL/dW'],
  output_gradient: ['output gradients', 'log10 RMS of dL/dz'],
  output: ['outputs', 'log10 RMS of z = Wx + b'],
  weight: ['weights', 'log10 RMS of W'],
  update_ratio: ['update ratio', 'log10 of RMS of the change of W over RMS of W'],
  zero_fraction: ['zero fraction', 'share of exact zeros in dL/dW'],
};

// An element; strings among its children are text, never markup.
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== ''));
  return element;
}

// The empty page. `on` says what to do: slide(), choose(quantity), numbers().
export function build(on, chosen) {
  const page = {};
  page.runs = h('div', { id: 'runs' });
  page.notice = h('p', { id: 'notice', role: 'status' });
  page.slider = h('input', { type: 'range', id: 'step', min: 0, max: 0, step: 1, oninput: on.slide });
  page.step = h('output', { for: 'step' });
  page.status = h('span', { id: 'status', class: 'muted', role: 'status' });
  page.explained = h('p', { class: 'muted' });
  page.legend = h('div', { class: 'keys', id: 'legend' });
  page.maps = h('div', { class: 'cards', id: 'maps' });
  page.profileWords = h('p', { class: 'muted' });
  page.profile = h('div', { class: 'picture' });
  page.numbers = h('details', { id: 'numbers', ontoggle: on.numbers }, h('summary', {}, 'The numbers'));
  page.waterfalls = h('div', { class: 'cards', id: 'waterfalls' });
  page.tip = h('div', { id: 'tip', hidden: true });
  page.main = h('main', {}, stepBar(page), mapSection(page), profileSection(page), waterfallSection(page));
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

const stepBar = (page) => h('div', { id: 'steps' }, h('label', { for: 'step' }, 'Step'), page.slider, page.step, page.status);

const mapSection = (page) => h('section', { id: 'flow' },
  h('header', {}, h('div', {}, h('h2', {}, 'Flow map'), page.explained), page.legend), page.maps);

const profileSection = (page) => h('section', { id: 'profile' },
  h('header', {}, h('div', {}, h('h2', {}, 'Depth profile'), page.profileWords)),
  h('div', { class: 'card' }, page.profile, page.numbers));

function waterfallSection(page) {
  const key = (kind, words) =>
    h('span', { class: 'key' }, h('span', { class: 'box', style: `background:var(--${kind})` }), words);
  return h('section', { id: 'waterfall' },
    h('header', {},
      h('div', {}, h('h2', {}, 'Waterfall'),
        h('p', { class: 'muted' },
          'The gradient on its way from the last layer, right, to the first, left; ' +
          'log axis, 1 is the output gradient of the last layer.')),
      h('div', { class: 'keys' }, key('weights', 'weights'), key('activations', 'activation'), key('both', 'not split'))),
    page.waterfalls,
    h('p', { class: 'muted' },
      'Weights: RMS of a layer’s input gradient over RMS of its output gradient. Activation: RMS of a layer’s output ' +
      'gradient over RMS of the input gradient of the layer above. Their product is always the ratio of the ends. Where a ' +
      'model branches or adds (residual connections), a factor between two layers also holds what other paths bring, so ' +
      'only in a plain chain does it tell who took the gradient. Shares are of the logarithm.'));
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
