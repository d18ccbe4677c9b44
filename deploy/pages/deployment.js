"use strict";
// One model: its traffic over time, what was measured, the gate it waits at, and the buttons that the caller's role allows.
const model = decodeURIComponent(location.pathname.split("/").at(-1)), path = `deployments/${encodeURIComponent(model)}`;
const NEEDS_VERSION = new Set(["deploy", "rollback"]), OF_CANDIDATE = new Set(["approve", "reject", "override"]);
//: What changes who is answered: asked once more before it is done.
const CUTS = { rollback: v => `Version ${v} gets no traffic any more, at once.`, promote: v => `Version ${v} gets all traffic now; what is left of its bake times is skipped.`,
  reject: v => `The rollout of version ${v} ends.`, override: v => `Version ${v} goes on without what the rollout waits for. It stays on record as an override.` };
let deployment = null, may = new Set(), busy = false;
document.title = `${model} · Driftline`;
byId("name").textContent = model;
byId("audit").textContent = `driftline audit ${model}`;

const row = cells => { const made = node("tr"); made.append(...cells.map(text => node("td", "", text))); return made };

const listed = weights => Object.entries(weights).map(([v, w]) => `${named(v)} ${percent(w)}`).join(", ") || "fallback";

function drawTraffic(d, points, now) {
  draw("traffic", d, d => {
    const head = node("div", "head");
    head.append(node("b", "", d.model), phaseChip(d));
    if (d.candidate) head.append(node("span", "chip", `${d.strategy}: ${named(d.candidate)}`));
    if (d.training) head.append(node("span", "chip", "training"));
    if (d.alerting.length) head.append(node("span", "chip bad", `beyond its alert bound: ${d.alerting.join(", ")}`));
    head.append(node("span", "dim", `revision ${d.revision}`));
    // Each region has as many stages; `steps` are those of all of them, one region after another.
    const each = d.steps.length / (d.regions.length || 1), turn = Math.floor(d.step / each), stages = d.steps.slice(turn * each, (turn + 1) * each);
    const where = d.regions.length ? ` in ${d.regions[turn].region}, region ${turn + 1} of ${d.regions.length}` : "";
    const steps = each ? [node("p", "dim", `step ${d.step % each + 1} of ${each}${where}: ${stages.map(([w]) => percent(w)).join(" → ")}`)] : [];
    return [head, ...traffic(d), ...steps, ...(d.reason ? [node("p", "why dim text", d.reason)] : [])];
  });
  // A chart for each region that a rollout has named; before and after it all of them are alike.
  const regions = [...new Set(points.flatMap(p => Object.keys(p.regions)))], charts = (regions.length ? regions : [""]).map(region => {
    const seen = points.map(p => ({ at: p.event_time_ms, weights: p.regions[region] ?? p.weights }));
    if (seen.length) seen.push({ at: Math.max(now ?? 0, seen.at(-1).at), weights: seen.at(-1).weights });
    return [region, seen];
  });
  draw("weights", charts, charts => charts.filter(([, seen]) => seen.length > 1 && seen.at(-1).at > seen[0].at)
    .map(([region, seen]) => weightChart(model, seen, `share of traffic${region && ` of ${region}`} over event time`)));
  draw("weights-table", points, points => [...points].reverse().map(p => row([at(p.event_time_ms), String(p.revision), words(p.kind),
    Object.keys(p.regions).length ? Object.entries(p.regions).map(([region, w]) => `${region}: ${listed(w)}`).join("; ") : listed(p.weights)])));
}

// The value with its confidence sequence, over event time, and the line of no difference.
function band(metric, points) {
  const figure = node("figure"), last = points.at(-1), whole = points.filter(p => p.value != null);
  const text = `${named(last.version)}: ${number(last.value)}${last.low == null ? "" : ` in [${number(last.low)}, ${number(last.high)}]`}, ${last.rows.toLocaleString("en")} rows`;
  const title = node("div", "row");
  title.append(node("b", "", metric), node("span", `chip ${/passed|stable/.test(last.state) ? "good" : /failed|drift|error/.test(last.state) ? "bad" : "warn"}`, last.state), node("span", "dim", text));
  figure.append(title);
  if (whole.length < 2) return figure;
  const sure = whole.filter(p => p.low != null && p.high != null);
  const ends = [...whole.flatMap(p => [p.value, p.low ?? p.value, p.high ?? p.value]), ...(sure.length ? [0] : [])].filter(Number.isFinite);
  const low = Math.min(...ends), height = Math.max(...ends) - low || 1, first = whole[0].event_time_ms, span = Math.max(1, last.event_time_ms - first);
  const x = p => (p.event_time_ms - first) / span * 1000, y = value => 96 - (value - low) / height * 92;
  const svg = shape("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": `${metric} over event time: ${text}` });
  if (sure.length > 1) svg.append(shape("polygon", { class: "band", points: [...sure.map(p => `${x(p)},${y(p.high)}`), ...sure.map(p => `${x(p)},${y(p.low)}`).reverse()].join(" ") }));
  if (sure.length) svg.append(shape("line", { class: "zero", x1: 0, x2: 1000, y1: y(0), y2: y(0) }));
  svg.append(shape("polyline", { class: "value", points: whole.map(p => `${x(p)},${y(p.value)}`).join(" ") }));
  const under = node("figcaption");
  under.append(node("span", "", at(first)), node("span", "", sure.length > 1 ? "value, and where it is known to lie" : "value"), node("span", "", at(last.event_time_ms)));
  figure.append(svg, under);
  return figure;
}

function drawAnalysis(points) {
  draw("analysis", points, points => {
    const series = new Map();
    const newest = points.at(-1)?.version;
    for (const p of points) if (p.version === newest) { const name = p.region ? `${p.metric} in ${p.region}` : p.metric; series.set(name, [...(series.get(name) ?? []), p]) }
    return series.size ? [...series].map(([metric, all]) => band(metric, all)) : [node("p", "empty", "Nothing was measured yet.")];
  });
  draw("analysis-table", points, points => [...points].reverse().slice(0, 200).map(p => row([at(p.event_time_ms), named(p.version), p.region ? `${p.metric} in ${p.region}` : p.metric, p.state, number(p.value),
    p.low == null ? "–" : `${number(p.low)} … ${number(p.high)}`, p.rows.toLocaleString("en")])));
}

function drawGate(gate) {
  byId("gate-card").hidden = !gate;
  draw("gate", gate ?? null, gate => {
    if (!gate) return [];
    const list = node("dl", "facts"), put = (term, text) => list.append(node("dt", "", term), node("dd", "", text));
    put("Gate", words(gate.kind)); put("Version", named(gate.version));
    put("Traffic when it opens", `${percent(gate.weight)}${gate.region ? ` of ${gate.region}` : ""}`);
    put("Waiting since", `${at(gate.since_ms)} UTC`); put("Expires", `${at(gate.expires_ms)} UTC`);
    if (gate.approvals_needed) put("Approvals", `${gate.approved_by.length} of ${gate.approvals_needed}${gate.approved_by.length ? `: ${gate.approved_by.join(", ")}` : ""}`);
    if (gate.webhook) put("Asks", gate.webhook);
    return [list];
  });
}

// A button that would be refused is off, and says why to whoever points at it.
function drawButtons(me) {
  may = new Set(me.may);
  byId("may").textContent = may.size ? "" : `As ${me.role} you can look. Sign in as an operator to act.`;
  const fits = {
    deploy: !deployment?.candidate, promote: deployment?.candidate, pause: deployment?.candidate && !deployment.pause,
    resume: deployment?.pause === "requested", retrain: deployment && !deployment.training && !deployment.candidate,
    rollback: deployment && Object.keys(deployment.weights).length, approve: deployment?.gate, reject: deployment?.gate, override: deployment?.gate || deployment?.pause,
  };
  for (const button of document.querySelectorAll("[data-verb]")) {
    const verb = button.dataset.verb;
    button.disabled = busy || !may.has(verb) || !fits[verb];
    button.title = !may.has(verb) ? `your role (${me.role}) may not` : !fits[verb] ? "nothing to do it to now" : "";
  }
}

function drawVersions(versions) {
  const known = [...new Set([...versions.map(v => v.version), ...Object.keys(deployment?.weights ?? {}), ...(deployment?.candidate ? [deployment.candidate] : [])])].sort((a, b) => b.localeCompare(a, "en", { numeric: true }));
  const chosen = byId("version").value;
  draw("version", known, known => known.map(v => { const option = node("option", "", named(v)); option.value = v; return option }));
  if (known.includes(chosen)) byId("version").value = chosen;
}

function sure(verb, version) {
  if (!CUTS[verb]) return Promise.resolve(true);
  const box = byId("sure");
  byId("sure-title").textContent = `${words(verb)} ${model}?`; byId("sure-text").textContent = CUTS[verb](version); byId("sure-yes").textContent = words(verb);
  box.returnValue = "";
  box.showModal();
  return new Promise(resolve => box.addEventListener("close", () => resolve(box.returnValue === "yes"), { once: true }));
}
byId("sure-no").addEventListener("click", () => byId("sure").close(""));
byId("sure-yes").addEventListener("click", () => byId("sure").close("yes"));

async function act(verb) {
  const version = OF_CANDIDATE.has(verb) || verb === "promote" ? deployment?.gate?.version ?? deployment?.candidate : byId("version").value;
  const reason = byId("reason").value.trim(), say = text => { byId("outcome").textContent = `${words(verb)}: ${text}` };
  if (NEEDS_VERSION.has(verb) && !version) return say("choose a version first");
  if (verb === "override" && !reason) { byId("reason").focus(); return say("an override needs a reason") }
  if (!await sure(verb, version)) return;
  busy = true;
  try {
    const body = { reason, ...(NEEDS_VERSION.has(verb) || OF_CANDIDATE.has(verb) ? { version } : {}) };
    const { request_id } = await ask("POST", `${path}/${verb}`, body);
    say("asked, waiting for the controller");
    for (let look = 0; look < 50; look++) {
      await new Promise(resolve => setTimeout(resolve, 200));
      const answer = (await get("deployments"))[model]?.answers.find(a => a.request_id === request_id);
      if (answer) { byId("reason").value = ""; return say(`${answer.outcome}${answer.detail ? `: ${answer.detail}` : ""}`) }
    }
    say("no answer yet; the record below will show it");
  } catch (error) { say(error.message) } finally { busy = false; turn() }
}
for (const button of document.querySelectorAll("[data-verb]")) button.addEventListener("click", () => act(button.dataset.verb));
byId("act").addEventListener("submit", event => event.preventDefault());

const unless404 = (promise, instead) => promise.catch(error => { if (error.status === 404) return instead; throw error });
async function turn() {
  try {
    const me = await whoAmI();
    const [time, d, points, analysis, facts, versions] = await Promise.all([get("time"), unless404(get(path), null), unless404(get(`${path}/history?limit=1000`), []),
      unless404(get(`${path}/analysis?limit=1000`), []), get(`decisions?limit=200&model=${encodeURIComponent(model)}`), unless404(get(`models/${encodeURIComponent(model)}/versions`), [])]);
    lost();
    deployment = d;
    showTime(time);
    if (d) drawTraffic(d, points, time.event_time_ms);
    drawAnalysis(analysis); drawGate(d?.gate); drawVersions(versions); drawButtons(me);
    byId("no-facts").hidden = facts.length > 0;
    draw("facts", facts, facts => facts.map(d => fact(d, false)));
  } catch (error) { lost(error) }
}
forever(turn);
