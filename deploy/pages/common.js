"use strict";
// What both pages share: asking the API, building nodes (text only, never markup), colours of versions, charts.
const SVG = "http://www.w3.org/2000/svg", POINTS_MAX = 1000;
const byId = id => document.getElementById(id);
const at = ms => ms > 0 ? new Date(ms).toISOString().slice(0, 16).replace("T", " ") : "";
const percent = w => w > 0 && w < .01 ? "<1 %" : `${Math.round(w * 100)} %`;
const words = text => text.replaceAll("-", " ").replace(/^./, c => c.toUpperCase());
const named = version => /^\d/.test(version) ? `v${version}` : version;
const number = x => x == null ? "–" : Math.abs(x) >= 1000 || x !== 0 && Math.abs(x) < .001 ? x.toExponential(2) : String(+x.toPrecision(3));

const node = (tag, cls, text) => {
  const made = document.createElement(tag);
  if (cls) made.className = cls;
  if (text !== undefined) made.textContent = text;
  return made;
};
const shape = (tag, attributes) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

// The token lives as long as the tab does and goes nowhere but into this header.
const token = () => sessionStorage.getItem("token");
const headers = more => token() ? { ...more, authorization: `Bearer ${token()}` } : more ?? {};
async function ask(method, path, body) {
  const said = body === undefined ? {} : { body: JSON.stringify(body) };
  const answer = await fetch(`/v1/${path}`, { method, ...said, headers: headers(body === undefined ? {} : { "content-type": "application/json" }) });
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(content.detail ?? `status ${answer.status}`), { status: answer.status });
  return content;
}
const get = path => ask("GET", path);

// The same version has the same colour wherever it is drawn.
const hues = {};
const hue = (model, version) => { const known = hues[model] ??= {}; return `var(--v${(known[version] ??= Object.keys(known).length) % 5})` };

// Draws only what changed, so that scrolling, focus and selections survive a poll.
const drawn = {};
function draw(id, data, make) {
  const key = JSON.stringify(data);
  if (drawn[id] === key) return;
  drawn[id] = key;
  byId(id).replaceChildren(...make(data));
}

function phaseChip(d) {
  const bad = d.phase === "failed" || d.phase === "rolled-back" || !Object.keys(d.weights).length && d.phase !== "initializing";
  return node("span", `chip ${bad ? "bad" : d.pause || d.gate ? "warn" : d.candidate || d.phase === "initializing" ? "" : "good"}`,
    d.pause ? `paused: ${words(d.pause).toLowerCase()}` : d.phase);
}

// Where a rollout by regions stands in each of them.
const stands = r => r.since_ms == null ? "its turn has not come" : r.until_ms == null ? "under way" : "has baked";

// The share of each version now, of each region where a rollout goes by regions: a bar for the eye, a list for everybody.
function traffic(d) {
  const others = [["tripped", d.tripped], ["cannot be served or proven", d.sick], ["rollback target", d.previous ? [d.previous] : []]];
  if (!d.regions.length) return shares(d, d.weights, [["shadow", d.shadow], ...others]);
  const rest = node("ul", "legend");
  rest.append(node("li", "dim", "In every other region the stable version answers."), ...mentions(others));
  return [...d.regions.flatMap(r => {
    const head = node("p");
    head.append(node("b", "", r.region), " ", node("span", "dim", stands(r)));
    return [head, ...shares(d, r.weights, [["shadow", r.shadow]])];
  }), rest];
}

const mentions = lists => lists.filter(([, versions]) => versions.length).map(([label, versions]) => {
  const item = node("li", "", versions.map(named).join(", ") + " ");
  item.append(node("span", "dim", label));
  return item;
});

function shares(d, weights, lists) {
  const bar = node("div", "bar"), legend = node("ul", "legend");
  bar.setAttribute("aria-hidden", "true");
  for (const [version, weight] of Object.entries(weights)) {
    const piece = node("span", weight >= .2 ? "label" : "", weight >= .2 ? `${named(version)}  ${percent(weight)}` : undefined);
    piece.style.flexGrow = weight; piece.style.flexBasis = 0; piece.style.background = hue(d.model, version);
    bar.append(piece);
    const item = node("li"), dot = node("span", "dot");
    dot.style.background = hue(d.model, version);
    item.append(dot, node("b", "", named(version)), ` ${percent(weight)} `, node("span", "dim", version === d.stable ? "stable" : version === d.candidate ? "candidate" : ""));
    legend.append(item);
  }
  if (!bar.children.length) {
    const none = node("span", "label fallback", "no version serves: the fallback answers");
    none.style.flexGrow = 1; bar.append(none); legend.append(node("li", "", "No version serves: the fallback answers."));
  }
  legend.append(...mentions(lists));
  return [bar, legend];
}

// Steps of the traffic over event time; `points` are {at, weights}, oldest first, the last one is now.
function weightChart(model, points, caption) {
  const figure = node("figure"), svg = shape("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": "share of traffic by version over event time" });
  const first = points[0].at, span = Math.max(1, points.at(-1).at - first), x = ms => (ms - first) / span * 1000;
  points.slice(0, -1).forEach((p, i) => {
    let y = 100;
    for (const version of Object.keys(p.weights).sort((a, b) => a.localeCompare(b, "en", { numeric: true }))) {
      const height = p.weights[version] * 100;
      y -= height;
      const box = shape("rect", { x: x(p.at), y, width: Math.max(1, x(points[i + 1].at) - x(p.at)), height });
      box.style.fill = hue(model, version);
      svg.append(box);
    }
  });
  const under = node("figcaption");
  under.append(node("span", "", at(first)), node("span", "", caption), node("span", "", at(points.at(-1).at)));
  const legend = node("ul", "legend");
  for (const version of new Set(points.flatMap(p => Object.keys(p.weights)))) {
    const item = node("li"), dot = node("span", "dot");
    dot.style.background = hue(model, version);
    item.append(dot, named(version)); legend.append(item);
  }
  figure.append(svg, under, legend);
  return figure;
}

function entry(cls, color, title, extra, time, text) {
  const item = node("li", cls), row = node("div", "row"), when = node("time", "", at(time));
  item.style.setProperty("--mark", `var(--${color})`);
  if (time > 0) when.dateTime = new Date(time).toISOString();
  row.append(node("span", "mark", title), node("span", "dim", extra), when);
  item.append(row, node("div", "text", text));
  return item;
}
const shade = kind => /proven/.test(kind) ? "good" : /roll.*back|fail|refus|reject|trip|halt/.test(kind) ? "bad" : /pass|promot|succe|regist|resolved|approv/.test(kind) ? "good" : /pause|alert|wait|overrid/.test(kind) ? "warn" : "info";
const fact = (d, withModel) => entry("", shade(d.kind), words(d.kind), [withModel && d.model, d.version && named(d.version), d.actor].filter(Boolean).join(" · "), d.event_time_ms, d.detail);

function showTime(time) {
  byId("time").replaceChildren(...(time.event_time_ms > 0 ? ["event time ", node("b", "", at(time.event_time_ms)), " UTC"] : ["no event time yet"]));
}

// Who the caller is; a token can be given where that is wanted.
function signIn(again) {
  const box = byId("sign-in"), field = byId("token");
  byId("sign-in-form").addEventListener("submit", event => {
    event.preventDefault();
    if (field.value.trim()) sessionStorage.setItem("token", field.value.trim()); else sessionStorage.removeItem("token");
    field.value = ""; box.open = false; again();
  });
  byId("sign-out").addEventListener("click", () => { sessionStorage.removeItem("token"); box.open = false; again() });
}
// What the caller may. A token that is refused is dropped, so that what needs none is still seen.
let refused = false;
async function whoAmI() {
  let me;
  try { me = await get("me"); if (token()) refused = false } catch (error) {
    if (error.status !== 401 || !token()) throw error;
    sessionStorage.removeItem("token");
    refused = true;
    me = await get("me");
  }
  byId("me").textContent = `${me.name} (${me.role})${refused ? " – the token was refused" : ""}`;
  byId("sign-out").hidden = !token();
  return me;
}

function lost(error) {
  byId("lost").textContent = error === undefined ? "" : error.status === 401 ? "Sign in to see what is deployed."
    : error.status ? `The controller refuses: ${error.message}` : "The controller does not answer; what you see is old. Trying again.";
}

// Polls for as long as the page is there; a hidden one asks rarely.
async function forever(turn) {
  signIn(turn);
  for (;;) {
    await turn();
    await new Promise(resolve => setTimeout(resolve, document.hidden ? 10_000 : 1_000));
  }
}
