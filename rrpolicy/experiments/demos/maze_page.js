// Plans of a maze's base and of the steered base, computed by ONNX Runtime Web and drawn over the reward.

const GROUPS = ["base", "steered"];
const get = id => document.getElementById(id);
const { maze, planner: shape } = settings;
const state = { start: maze.start, scale: shape.scale, seed: 0 };

// ---------------------------------------------------------------------- the runtime

async function unpacked(name) {
  const packed = Uint8Array.from(atob(embedded[name]), character => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function sessions() {
  const glue = new Blob([await unpacked("ort-wasm-simd-threaded.mjs")], { type: "text/javascript" });
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await unpacked("ort-wasm-simd-threaded.wasm");
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(glue) };
  const made = {};
  for (const name of ["planner", "reward"]) {
    made[name] = await ort.InferenceSession.create(await unpacked(`${name}.onnx`), { executionProviders: ["wasm"] });
  }
  return made;
}

const tensor = (data, dims) => new ort.Tensor(Float32Array.from(data), dims);

// Plans from observations, one for each row: noise is (draws, rows, candidates, H, D), flat.
async function plans(observations, noise, scales) {
  const n = scales.length;
  const found = await graphs.planner.run({
    observation: tensor(observations.flat(), [n, shape.observationDim]),
    noise: tensor(noise, [shape.draws, n, shape.candidates, ...shape.event]),
    scale: tensor(scales, [n]),
  }, ["window", "plan"]);
  return { windows: found.window.data, xy: rows(found.plan.data, n) };
}

// The reward (n) of normalised windows, clean but for the noise of the lowest level, whose mean they are.
async function rho(windows) {
  const size = shape.pinned.length, n = windows.length / size;
  const events = windows.map((value, i) => shape.pinned[i % size] ? value : shape.alpha * value);
  const feeds = { x_t: tensor(events, [n, ...shape.event]), t: new ort.Tensor("int64", new BigInt64Array(n), [n]) };
  return Array.from((await graphs.reward.run(feeds)).rho.data);
}

// (n, H, columns), flat -> n lists of [x, y]
function rows(values, n) {
  const width = values.length / n / shape.event[0];
  return Array.from({ length: n }, (_, i) => Array.from({ length: shape.event[0] }, (_, row) =>
    shape.xy.map(column => values[(i * shape.event[0] + row) * width + column])));
}

// ---------------------------------------------------------------------- noise

function uniform(seed) {  // mulberry32
  let word = seed >>> 0;
  return () => {
    word = (word + 0x6d2b79f5) | 0;
    let mixed = Math.imul(word ^ (word >>> 15), 1 | word);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function normal(n, seed) {
  const draw = uniform(seed);
  return Array.from({ length: n }, () => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw()));
}

// The same noise for base and steered plans.
function twice(noise) {
  const length = noise.length / shape.draws, parts = [];
  for (let i = 0; i < shape.draws; i++) {
    const part = noise.slice(i * length, (i + 1) * length);
    parts.push(...part, ...part);
  }
  return parts;
}

// ---------------------------------------------------------------------- planning

let graphs = null, wanted = false, busy = false;

async function plan() {
  wanted = true;
  if (busy || graphs === null) return;
  busy = true;
  try {
    while (wanted) {
      wanted = false;
      await planOnce();
    }
  } catch (error) {
    fault(error);
  } finally {
    busy = false;
  }
}

async function planOnce() {
  const n = settings.plans, { start, scale, seed } = { ...state };
  const noise = normal(n * shape.draws * shape.candidates * shape.event[0] * shape.event[1], seed);
  const observation = Array.from({ length: shape.observationDim }, (_, i) => start[i] ?? 0);
  const began = performance.now();
  const all = Array.from({ length: 2 * n }, (_, i) => i < n ? 0 : scale);
  const found = await plans(all.map(() => observation), twice(noise), all);
  const took = performance.now() - began, values = await rho(found.windows);
  const result = { start, scale, observation, noise };
  GROUPS.forEach((name, i) => {
    result[name] = { xy: found.xy.slice(i * n, (i + 1) * n), rho: values.slice(i * n, (i + 1) * n) };
  });
  show(result);
  globalThis.demo.result = result;
  say(`${2 * n} plans of ${shape.steps} denoising steps in ${took.toFixed(0)} ms`);
}

const say = text => { get("status").textContent = text; };

function fault(error) {
  get("status").className = "fault";
  say(`The planner cannot be run here: ${error.message ?? error}`);
  throw error;
}

// ---------------------------------------------------------------------- drawing

const [left, right, bottom, top] = maze.extent;

function drawn(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  element.textContent = text;
  return element;
}

function drawMaze() {
  const svg = get("maze"), height = top - bottom, width = right - left;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const box = { x: 0, y: 0, width, height };
  svg.append(drawn("rect", { ...box, fill: "#3a4254" }));
  svg.append(drawn("image", { ...box, href: maze.heat, preserveAspectRatio: "none" }));
  svg.append(drawn("g", { id: "plans" }));
  const [x, y] = place(maze.goal);
  svg.append(drawn("circle", { cx: x, cy: y, r: maze.goalRadius, style: "fill:none;stroke:#d63348;stroke-width:.04" }));
  svg.append(drawn("circle", { id: "from", r: .1, style: "fill:#fff;fill-opacity:1;stroke:#1d2129;stroke-width:.04" }));
  svg.addEventListener("click", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    begin([left + at.x, top - at.y]);
  });
}

const place = ([x, y]) => [x - left, top - y];

function show(result) {
  const lines = GROUPS.flatMap(name => result[name].xy.map(points => drawn("polyline", {
    class: `plan ${name}`, points: points.map(point => place(point).map(value => value.toFixed(3)).join(",")).join(" "),
  })));
  get("plans").replaceChildren(...lines);
  const [x, y] = place(result.start);
  get("from").setAttribute("cx", x);
  get("from").setAttribute("cy", y);
  for (const name of GROUPS) {
    const { rho, xy } = result[name], mean = rho.reduce((a, b) => a + b, 0) / rho.length;
    const reach = xy.filter(points => points.some(p => Math.hypot(p[0] - maze.goal[0], p[1] - maze.goal[1]) <= maze.goalRadius));
    get(`rho-${name}`).textContent = mean.toFixed(2);
    get(`goal-${name}`).textContent = `${reach.length} of ${rho.length}`;
  }
  showStrip(result);
}

function showStrip(result) {
  const all = GROUPS.flatMap(name => result[name].rho), low = Math.min(...all), span = Math.max(...all) - low || 1;
  const marks = GROUPS.flatMap((name, i) => result[name].rho.map(value => drawn("circle", {
    class: name, cx: 10 + 300 * (value - low) / span, cy: 14 + 20 * i, r: 5,
  })));
  const ends = [[10, "start", low], [310, "end", low + span]];
  get("strip").replaceChildren(drawn("line", { x1: 5, x2: 315, y1: 48, y2: 48, stroke: "#8b93a3" }), ...marks,
    ...ends.map(([x, anchor, value]) => drawn("text", { x, y: 63, "text-anchor": anchor }, value.toFixed(1))),
    drawn("text", { x: 160, y: 63, "text-anchor": "middle" }, "ρ of each plan, nats"));
}

// ---------------------------------------------------------------------- what is clicked

const cell = ([x, y]) => [Math.floor(top - y), Math.floor(x - left)];

function begin(start) {
  const [row, column] = cell(start);
  if ((maze.rows[row] ?? "")[column] === undefined || maze.rows[row][column] === "#") {
    say("There is a wall; click a free place.");
    return;
  }
  state.start = start;
  plan();
}

function beginAnywhere() {
  const free = maze.rows.flatMap((cells, row) => [...cells].flatMap((c, column) => c === "#" ? [] : [[row, column]]));
  const [row, column] = free[Math.floor(Math.random() * free.length)];
  begin([left + column + .5, top - row - .5]);
}

function setScale(value) {
  state.scale = value;
  get("shown").textContent = value.toFixed(1);
  plan();
}

drawMaze();
get("scale").max = shape.largestScale;
get("scale").value = shape.scale;
setScale(shape.scale);
get("scale").addEventListener("input", event => setScale(event.target.valueAsNumber));
get("start").addEventListener("click", beginAnywhere);
get("draw").addEventListener("click", () => { state.seed += 1; plan(); });
globalThis.demo = { state, result: null };
globalThis.demo.ready = sessions().then(made => {
  graphs = made;
  ["scale", "start", "draw"].forEach(id => { get(id).disabled = false; });
  return plan();
}).catch(fault);
