// The timeline: lanes of bars on a canvas, zoom and pan, what a bar is, and what it waited for.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { rows, lanes, opcodes, places, texts } = data;
const count = rows.start.length;
const canvas = document.getElementById("lanes");
const overview = document.getElementById("overview");
const tip = document.getElementById("tip");
const LEFT = 92, TOP = 26, GAP = 8, TRACK_LEAST = 5, OVERVIEW_LANE = 5;

// Rows of each lane and track in order of start: a binary search finds the visible ones.
const tracks = [];
lanes.forEach((lane, number) => {
  for (let track = 0; track < lane.tracks; track++) tracks.push({ lane: number, track, of: lane.tracks, rows: [] });
});
const firstTrack = lanes.map((_, number) => tracks.findIndex((track) => track.lane === number));
for (let row = 0; row < count; row++) tracks[firstTrack[rows.lane[row]] + rows.track[row]].rows.push(row);
const laneHeight = (lane) => Math.max(34, lane.tracks * TRACK_LEAST);
let view = { from: 0, to: data.device_ns };
let hovered = -1, chosen = -1, place = -1;

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const timeText = (ns, step = 0, size = Math.max(Math.abs(ns), step)) => {
  const [unit, scale] = size < 2e3 ? ["ns", 1] : size < 2e6 ? ["µs", 1e3] : ["ms", 1e6];
  const digits = step ? Math.max(0, -Math.floor(Math.log10(step / scale) + 1e-9)) : size < 2e3 ? 0 : 2;
  return `${(ns / scale).toFixed(digits)} ${unit}`;
};

function fit(element, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = element.clientWidth;
  element.style.height = `${height}px`;
  if (element.width !== Math.round(width * ratio) || element.height !== Math.round(height * ratio)) {
    element.width = Math.round(width * ratio);
    element.height = Math.round(height * ratio);
  }
  const pen = element.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

function tops() {
  let y = TOP;
  return lanes.map((lane) => { const top = y; y += laneHeight(lane) + GAP; return top; });
}
const totalHeight = () => TOP + lanes.reduce((sum, lane) => sum + laneHeight(lane) + GAP, 0) + 2;
const x = (ns, width) => LEFT + (ns - view.from) / (view.to - view.from) * (width - LEFT);
const atTime = (px, width) => view.from + (px - LEFT) / (width - LEFT) * (view.to - view.from);

function firstEndingAfter(list, ns) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows.free[list[middle]] < ns) low = middle + 1; else high = middle;
  }
  return low;
}

function drawAxis(pen, width, height) {
  const span = view.to - view.from;
  const rough = span / Math.max(2, (width - LEFT) / 110);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (let tick = Math.ceil(view.from / step) * step; tick <= view.to; tick += step) {
    const at = Math.round(x(tick, width)) + 0.5;
    pen.strokeStyle = style("--line");
    pen.beginPath(); pen.moveTo(at, TOP - 5); pen.lineTo(at, height); pen.stroke();
    pen.fillStyle = style("--quiet");
    if (at > LEFT + 14 && at < width - 20) pen.fillText(timeText(tick, step, view.to), at, 10);
  }
}

function drawTrack(pen, track, top, height, width) {
  // Bars narrower than a pixel add up: each column shows how busy the lane was there, by opcode.
  const kinds = opcodes.length, filled = new Float32Array((Math.ceil(width) + 2) * kinds);
  const list = track.rows;
  for (let number = firstEndingAfter(list, view.from); number < list.length; number++) {
    const row = list[number];
    if (rows.start[row] > view.to) break;
    const left = Math.max(LEFT, x(rows.start[row], width)), right = Math.min(width, x(rows.free[row], width));
    const isOff = place >= 0 && rows.place[row] !== place;
    if (right - left < 1.2) {
      if (isOff) continue;
      filled[Math.floor(left) * kinds + rows.opcode[row]] += right - left;
      continue;
    }
    pen.globalAlpha = isOff ? 0.15 : rows.count[row] > 1 ? 0.45 + 0.55 * rows.busy[row] / (rows.free[row] - rows.start[row]) : 1;
    pen.fillStyle = opcodes[rows.opcode[row]][1];
    pen.fillRect(left, top, right - left > 3 ? right - left - 0.6 : right - left, height);
    const name = rows.count[row] > 1 ? `${rows.count[row]} × ${opcodes[rows.opcode[row]][0]}` : opcodes[rows.opcode[row]][0];
    if (right - left > 36 && height > 14 && pen.measureText(name).width + 10 < right - left) {
      pen.globalAlpha = isOff ? 0.3 : 1;
      pen.fillStyle = "#ffffff";
      pen.textAlign = "left";
      pen.fillText(name, left + 5, top + height / 2 + 1);
    }
  }
  pen.globalAlpha = 1;
  for (let column = LEFT; column < width; column++) {
    let from = top + height;
    for (let kind = 0; kind < kinds; kind++) {
      const share = filled[column * kinds + kind];
      if (share <= 0) continue;
      const size = Math.max(0.7, share * height);
      pen.fillStyle = opcodes[kind][1];
      pen.fillRect(column, Math.max(top, from - size), 1, Math.min(size, from - top));
      from = Math.max(top, from - size);
    }
  }
  pen.globalAlpha = 1;
}

function drawCritical(pen, top, height, width, lane) {
  pen.fillStyle = style("--critical");
  for (let number = firstTrack[lane]; number < firstTrack[lane] + lanes[lane].tracks; number++) {
    const list = tracks[number].rows;
    for (let at = firstEndingAfter(list, view.from); at < list.length; at++) {
      const row = list[at];
      if (rows.start[row] > view.to) break;
      if (!(rows.critical[row] > 0)) continue;
      const left = Math.max(LEFT, x(rows.start[row], width)), right = Math.min(width, x(rows.free[row], width));
      pen.fillRect(left, top + height + 1, Math.max(0.6, right - left), 3);
    }
  }
}

function barBox(row, width, laneTops) {
  const lane = lanes[rows.lane[row]], height = laneHeight(lane) / lane.tracks;
  const left = x(rows.start[row], width), right = x(rows.free[row], width);
  return { left, right: Math.max(right, left + 1), top: laneTops[rows.lane[row]] + rows.track[row] * height, height };
}

function drawChoice(pen, width, laneTops) {
  if (hovered >= 0 && hovered !== chosen) outline(pen, barBox(hovered, width, laneTops), style("--ink"), 1);
  // The chain of waits that led to the chosen bar, a few steps back.
  for (let row = chosen, step = 0; row >= 0 && step < 8; step++) {
    const box = barBox(row, width, laneTops);
    outline(pen, box, style("--mark"), step ? 1 : 2);
    const before = rows.waited[row];
    if (before >= 0) {
      const from = barBox(before, width, laneTops);
      const startX = Math.min(from.right, box.left), startY = from.top + from.height / 2, endY = box.top + box.height / 2;
      pen.strokeStyle = style("--mark");
      pen.lineWidth = 1.2;
      pen.beginPath();
      pen.moveTo(startX, startY);
      pen.bezierCurveTo(startX + 18, startY, box.left - 18, endY, box.left, endY);
      pen.stroke();
    }
    row = before;
  }
}

function outline(pen, box, colour, thickness) {
  pen.strokeStyle = colour;
  pen.lineWidth = thickness;
  pen.strokeRect(box.left - 0.5, box.top - 0.5, box.right - box.left + 1, box.height + 1);
}

function draw() {
  const { pen, width, height } = fit(canvas, totalHeight());
  drawAxis(pen, width, height);
  const laneTops = tops();
  lanes.forEach((lane, number) => {
    const top = laneTops[number], size = laneHeight(lane), each = size / lane.tracks;
    pen.fillStyle = style("--track");
    pen.fillRect(LEFT, top, width - LEFT, size);
    for (let track = 0; track < lane.tracks; track++) {
      drawTrack(pen, tracks[firstTrack[number] + track], top + track * each, lane.tracks > 1 ? each - 0.5 : each, width);
    }
    drawCritical(pen, top, size, width, number);
    pen.textAlign = "right";
    pen.fillStyle = style("--ink");
    pen.font = "12px system-ui, sans-serif";
    pen.fillText(lane.name, LEFT - 10, top + size / 2 - 7);
    pen.fillStyle = style("--quiet");
    pen.font = "11px system-ui, sans-serif";
    pen.fillText(`${(lane.utilisation * 100).toFixed(lane.utilisation < 0.1 ? 1 : 0)} % busy`, LEFT - 10, top + size / 2 + 8);
  });
  pen.save(); pen.beginPath(); pen.rect(LEFT - 1, 0, width - LEFT + 1, height); pen.clip();
  drawChoice(pen, width, laneTops);
  pen.restore();
  drawOverview();
}

let overviewImage = null;
function drawOverview() {
  const { pen, width, height } = fit(overview, lanes.length * (OVERVIEW_LANE + 1) + 6);
  if (!overviewImage || overviewImage.width !== overview.width) {
    const whole = (ns) => LEFT + ns / data.device_ns * (width - LEFT);
    pen.globalAlpha = 0.6;
    for (let row = 0; row < count; row++) {
      pen.fillStyle = opcodes[rows.opcode[row]][1];
      const left = whole(rows.start[row]);
      pen.fillRect(left, 3 + rows.lane[row] * (OVERVIEW_LANE + 1), Math.max(0.3, whole(rows.free[row]) - left), OVERVIEW_LANE);
    }
    pen.globalAlpha = 1;
    overviewImage = document.createElement("canvas");
    overviewImage.width = overview.width; overviewImage.height = overview.height;
    overviewImage.getContext("2d").drawImage(overview, 0, 0);
  } else {
    pen.drawImage(overviewImage, 0, 0, width, height);
  }
  const left = LEFT + view.from / data.device_ns * (width - LEFT), right = LEFT + view.to / data.device_ns * (width - LEFT);
  pen.strokeStyle = style("--accent");
  pen.lineWidth = 1.5;
  pen.strokeRect(left + 0.75, 0.75, Math.max(3, right - left) - 1.5, height - 1.5);
}

function describe(row) {
  const line = (text, quiet = false) => {
    const paragraph = document.createElement("p");
    if (quiet) paragraph.className = "quiet";
    paragraph.textContent = text;
    return paragraph;
  };
  const opcode = opcodes[rows.opcode[row]][0], lane = lanes[rows.lane[row]].name;
  const parts = [];
  const title = document.createElement("p");
  const strong = document.createElement("b");
  strong.textContent = rows.count[row] > 1 ? `${rows.count[row]} × ${opcode}` : opcode;
  title.append(strong, ` on ${lane}, ${timeText(rows.busy[row])} busy, from ${timeText(rows.start[row], 1)}`);
  parts.push(title, line(texts[rows.text[row]]));
  if (texts[rows.facts[row]]) parts.push(line(texts[rows.facts[row]], true));
  const [location, source] = places[rows.place[row]];
  parts.push(line(`${location}  ${source}`, true));
  if (rows.count[row] === 1) {
    const before = rows.waited[row];
    const waited = before >= 0 ? ` ${opcodes[rows.opcode[before]][0]} of ${places[rows.place[before]][0].split("/").pop()}` : "";
    const wait = rows.start[row] - rows.ready[row];
    parts.push(line(`instruction ${rows.index[row]}: ${texts[rows.cause[row]]}${waited}; ` +
      `${wait > 0.5 ? `ready ${timeText(wait)} before it started; ` : ""}result visible at ${timeText(rows.end[row], 1)}` +
      `${rows.critical[row] > 0 ? `; ${timeText(rows.critical[row])} of the critical path` : ""}`, true));
  }
  return parts;
}

function rowAt(event) {
  const box = canvas.getBoundingClientRect();
  const px = event.clientX - box.left, py = event.clientY - box.top, width = canvas.clientWidth;
  const laneTops = tops();
  const number = lanes.findIndex((lane, at) => py >= laneTops[at] && py < laneTops[at] + laneHeight(lane));
  if (number < 0 || px < LEFT) return -1;
  const track = Math.min(lanes[number].tracks - 1, Math.floor((py - laneTops[number]) / (laneHeight(lanes[number]) / lanes[number].tracks)));
  const list = tracks[firstTrack[number] + track].rows;
  const reach = 2 * (view.to - view.from) / (width - LEFT), ns = atTime(px, width);
  let best = -1, nearest = reach;
  for (let at = firstEndingAfter(list, ns - reach); at < list.length && rows.start[list[at]] <= ns + reach; at++) {
    const row = list[at];
    const distance = ns < rows.start[row] ? rows.start[row] - ns : Math.max(0, ns - rows.free[row]);
    if (distance < nearest || (distance === nearest && best < 0)) { nearest = distance; best = row; }
  }
  return best;
}

function show(from, to) {
  const least = 20, span = Math.min(Math.max(to - from, least), data.device_ns);
  const start = Math.min(Math.max(from, 0), data.device_ns - span);
  view = { from: start, to: start + span };
  requestAnimationFrame(draw);
}
const zoom = (factor, around) => show(around - (around - view.from) * factor, around + (view.to - around) * factor);
const middle = () => (view.from + view.to) / 2;

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const around = atTime(Math.max(LEFT, event.clientX - canvas.getBoundingClientRect().left), canvas.clientWidth);
  if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    const shift = event.deltaX * (view.to - view.from) / canvas.clientWidth;
    show(view.from + shift, view.to + shift);
  } else zoom(Math.exp(event.deltaY * 0.0016), around);
}, { passive: false });
let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  drag = { x: event.clientX, from: view.from, to: view.to, moved: false };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (drag) {
    const shift = (drag.x - event.clientX) * (drag.to - drag.from) / (canvas.clientWidth - LEFT);
    if (Math.abs(event.clientX - drag.x) > 3) drag.moved = true;
    if (drag.moved) show(drag.from + shift, drag.to + shift);
    return;
  }
  const row = rowAt(event);
  if (row !== hovered) { hovered = row; requestAnimationFrame(draw); }
  tip.hidden = row < 0;
  if (row < 0) return;
  tip.replaceChildren(...describe(row));
  const box = canvas.parentElement.getBoundingClientRect();
  const left = event.clientX - box.left + 16;
  tip.style.left = `${Math.max(0, Math.min(left, box.width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${event.clientY - box.top + 18}px`;
});
canvas.addEventListener("pointerup", (event) => {
  if (drag && !drag.moved) choose(rowAt(event));
  drag = null;
});
canvas.addEventListener("pointerleave", () => { hovered = -1; tip.hidden = true; requestAnimationFrame(draw); });
canvas.addEventListener("dblclick", () => show(0, data.device_ns));
canvas.addEventListener("keydown", (event) => {
  const span = view.to - view.from;
  const moves = {
    ArrowLeft: () => show(view.from - span / 6, view.to - span / 6),
    ArrowRight: () => show(view.from + span / 6, view.to + span / 6),
    "+": () => zoom(0.6, middle()), "=": () => zoom(0.6, middle()), "-": () => zoom(1 / 0.6, middle()),
    0: () => show(0, data.device_ns), Escape: () => choose(-1),
  };
  if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
});
overview.addEventListener("pointerdown", (event) => {
  const at = (event.clientX - overview.getBoundingClientRect().left - LEFT) / (overview.clientWidth - LEFT) * data.device_ns;
  const span = view.to - view.from;
  show(at - span / 2, at + span / 2);
});

const sourceRows = [...document.querySelectorAll("tr[data-place]")];
function choose(row) {
  chosen = row;
  const card = document.createElement("div");
  card.className = "card";
  if (row >= 0) card.append(...describe(row));
  document.getElementById("chosen").replaceChildren(...(row >= 0 ? [card] : []));
  for (const line of sourceRows) line.classList.toggle("chosen", row >= 0 && Number(line.dataset.place) === rows.place[row]);
  requestAnimationFrame(draw);
}
for (const line of sourceRows) {
  line.addEventListener("mouseenter", () => { place = Number(line.dataset.place); requestAnimationFrame(draw); });
  line.addEventListener("mouseleave", () => { place = -1; requestAnimationFrame(draw); });
  line.addEventListener("click", () => document.getElementById("timeline").scrollIntoView({ behavior: "smooth" }));
}
window.addEventListener("resize", () => { overviewImage = null; requestAnimationFrame(draw); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => requestAnimationFrame(draw));
// `#at=START,END` (ns) opens the page on a part of the timeline.
const asked = /^#at=([\d.]+),([\d.]+)$/.exec(location.hash);
draw();
if (asked) show(Number(asked[1]), Number(asked[2]));
