// Requests to the server: the list of series, a flow map's numbers, one step's profile and waterfall.

async function ask(route, query = {}) {
  const reply = await fetch(`./${route}?${new URLSearchParams(query)}`);
  if (!reply.ok) throw new Error((await reply.text()) || `TensorBoard answered ${reply.status}`);
  return reply;
}

// Unpacks an answer of `_binary` in routes.py: length of the head, head, float32 arrays as {rows, columns, values}.
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  let start = 4 + length;
  for (const [name, rows, columns = 1] of head.arrays) {
    arrays[name] = { rows, columns, values: new Float32Array(buffer, start, rows * columns) };
    start += 4 * rows * columns;
  }
  return { ...head, arrays };
}

const address = (series, preview) => ({ run: series.run, tag: series.tag, ...(preview ? { preview: 1 } : {}) });

export async function loadSeries() {
  return (await ask('runs')).json();
}

export async function loadFlow(series, quantity, preview) {
  return unpack(await (await ask('flow', { ...address(series, preview), quantity })).arrayBuffer());
}

export async function loadProfile(series, step, preview) {
  const answer = unpack(await (await ask('profile', { ...address(series, preview), step })).arrayBuffer());
  const values = (name) => answer.arrays[name]?.values;
  const theory = (name) => values(`theory.${name}`);
  return { step: answer.step, problem: answer.problem, waterfall: answer.waterfall, values, theory };
}

export async function loadTime(series, layer) {
  const answer = unpack(await (await ask('time', { run: series.run, layer })).arrayBuffer());
  return { ...answer, values: answer.arrays.values };
}

// Calls back when TensorBoard reloads, by its button or its timer.
export function onReload(callback) {
  const channel = new MessageChannel();
  channel.port1.onmessage = (message) => {
    if (JSON.parse(message.data).type === 'experimental.DataReloaded') callback();
  };
  window.parent.postMessage('experimental.bootstrap', '*', [channel.port2]);
}
