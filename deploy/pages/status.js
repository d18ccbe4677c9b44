"use strict";
// The overview: every model's traffic, what was decided, which alerts stand.
const RANK = { page: 0, ticket: 1, info: 2 }, COLOR = { page: "bad", ticket: "warn", info: "info" };
const past = {};

function remember(d, now) {
  const points = past[d.model] ??= [], key = JSON.stringify(d.weights);
  const when = Math.max(now ?? 0, d.event_time_ms);
  if (!points.length || points.at(-1).key !== key) points.push({ key, weights: d.weights, at: when });
  if (points.length > POINTS_MAX) points.shift();
  return [...points, { key, weights: d.weights, at: Math.max(when, points.at(-1).at) }];
}

function model([d, points]) {
  const part = node("div", "model"), head = node("div", "head"), link = node("a", "", d.model), title = node("b");
  link.href = `/models/${encodeURIComponent(d.model)}`;
  title.append(link);
  head.append(title, phaseChip(d));
  if (d.gate) head.append(node("span", "chip warn", `waits for ${words(d.gate.kind).toLowerCase()}`));
  if (d.training) head.append(node("span", "chip", "training"));
  head.append(node("span", "dim", `revision ${d.revision}`));
  part.append(head, ...traffic(d));
  if (d.reason) part.append(node("p", "why dim text", d.reason));
  if (!d.regions.length && points.length > 1 && points.at(-1).at > points[0].at) part.append(weightChart(d.model, points, "traffic since this page was opened"));
  return part;
}

const alert = a => entry(`alert${a.open ? "" : " closed"}`, a.open ? COLOR[a.severity] : "good", a.open ? words(a.severity) : "Resolved",
  [a.model, a.version && named(a.version), a.action !== "none" && `asks for ${a.action}`].filter(Boolean).join(" · "), a.event_time_ms, a.title);

// Newest first: the first word on a key is the last one said.
function standing(alerts) {
  const newest = new Map();
  for (const a of alerts) if (!newest.has(a.dedup_key)) newest.set(a.dedup_key, { ...a, open: a.status === "trigger" });
  return [...newest.values()].sort((a, b) => b.open - a.open || (a.open ? RANK[a.severity] - RANK[b.severity] : 0) || b.event_time_ms - a.event_time_ms);
}

function tile([label, value, color]) {
  const box = node("div", "card"), dd = node("dd", "", String(value));
  if (color && value) dd.style.color = `var(--${color})`;
  box.append(node("dt", "", label), dd);
  return box;
}

async function turn() {
  try {
    await whoAmI();
    const [time, all, decisions, alerts] = await Promise.all(["time", "deployments", "decisions?limit=1000", "alerts?limit=500"].map(get));
    const stands = standing(alerts), open = stands.filter(a => a.open), count = kind => decisions.filter(d => d.kind === kind).length;
    lost();
    showTime(time);
    draw("counters", [["Models", Object.keys(all).length], ["Open pages", open.filter(a => a.severity === "page").length, "bad"],
      ["Open tickets", open.filter(a => a.severity === "ticket").length, "warn"], ["Gates waiting", Object.values(all).filter(d => d.gate).length, "warn"],
      ["Retrains asked", count("retrain-requested")], ["Rollbacks", count("rolled-back"), "bad"],
      ["Decisions", decisions.length >= 1000 ? "1000+" : decisions.length]], rows => rows.map(tile));
    const states = Object.values(all);
    if (states.length) draw("models", states.map(d => [d, remember(d, time.event_time_ms)]), rows => rows.map(model));
    byId("no-decisions").hidden = decisions.length > 0; byId("no-alerts").hidden = stands.length > 0;
    draw("decisions", decisions.slice(0, 100), rows => rows.map(d => fact(d, true)));
    draw("alerts", stands.slice(0, 60), rows => rows.map(alert));
  } catch (error) { lost(error) }
}
forever(turn);
