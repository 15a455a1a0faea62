// What the back end answers: the list of series, a flow map's numbers, one step's profile.

async function ask(route, query = {}) {
  const reply = await fetch(`./${route}?${new URLSearchParams(query)}`);
  if (!reply.ok) throw new Error((await reply.text()) || `TensorBoard answered ${reply.status}`);
  return reply;
}

// See `_binary` in routes.py: length of the head, head, float32 arrays. A matrix becomes {rows, columns, values}.
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

const where = (series, preview) => ({ run: series.run, tag: series.tag, ...(preview ? { preview: 1 } : {}) });

export async function loadSeries() {
  return (await ask('runs')).json();
}

export async function loadFlow(series, quantity, preview) {
  return unpack(await (await ask('flow', { ...where(series, preview), quantity })).arrayBuffer());
}

export async function loadProfile(series, step, preview) {
  const answer = unpack(await (await ask('profile', { ...where(series, preview), step })).arrayBuffer());
  const of = (name) => answer.arrays[name]?.values;
  return { step: answer.step, problem: answer.problem, of, theory: (name) => of(`theory.${name}`) };
}

// TensorBoard's reload button and timer.
export function onReload(callback) {
  const channel = new MessageChannel();
  channel.port1.onmessage = (message) => {
    if (JSON.parse(message.data).type === 'experimental.DataReloaded') callback();
  };
  window.parent.postMessage('experimental.bootstrap', '*', [channel.port2]);
}
