// What the user chose and what was loaded, with functions that look things up in both.

import { loadFlow } from './data.js';

export const state = {
  series: [], quantity: 'weight_gradient', step: Infinity, // Infinity: the newest
  chosen: new Map(), // key of a series -> whether it is shown; the user's choice outlives a reload
  flows: new Map(), // key and quantity -> {stamp, flow} or {stamp, problem}
  profiles: new Map(), // key -> profile
  open: new Set(), filter: '', // names of the blocks that are open; what the names of the layers must have
  loadId: 0, // of the newest load; answers to older ones are dropped
};

export const keyOf = ({ run, tag }) => `${run}\n${tag}`;
export const shown = () => state.series.filter((series) => state.chosen.get(keyOf(series)));
export const loaded = (series) => state.flows.get(`${keyOf(series)}\n${state.quantity}`);
export const flowOf = (series) => loaded(series)?.flow;
export const drawable = () => shown().filter(flowOf);

export const profiled = () => drawable().filter((series) => state.profiles.has(keyOf(series)));
export const profileOf = (series) => state.profiles.get(keyOf(series));

// Steps with a profile.
export const allSteps = () => [...new Set(drawable().flatMap((series) => flowOf(series).steps))].sort((a, b) => a - b);

export const currentStep = () => Math.min(state.step, allSteps().at(-1) ?? 0);

// Loads a series' flow map of the chosen quantity, or the reason why there is none.
export async function loadOne(series, preview) {
  const { quantity } = state;
  const entry = { stamp: series.stamp };
  try {
    entry.flow = await loadFlow(series, quantity, preview);
    entry.flow.range = range(Object.values(entry.flow.arrays).map(({ values }) => values));
  } catch (error) {
    entry.problem = error.message;
  }
  state.flows.set(`${keyOf(series)}\n${quantity}`, entry);
}

// Smallest and largest of the positive finite numbers.
export function range(arrays) {
  let [low, high] = [Infinity, 0];
  for (const values of arrays) {
    for (const value of values) {
      if (value > 0 && value < low) low = value;
      if (value > high && value < Infinity) high = value;
    }
  }
  return [low, high];
}
