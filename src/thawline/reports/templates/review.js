const data = JSON.parse(document.querySelector("#data").textContent);
const served = location.protocol.startsWith("http");
const { images, classes } = data;
const count = images.path.length;
const storage = `thawline review of ${data.root}`;
const element = (name) => document.querySelector(`#${name}`);
const PAGE = 60;  // images that a list shows at first, and more at a time
const UNLABELED = "unlabeled";
const UNREACHABLE = "is thawline review --serve still running?";

// Corrections by path, as they are written; those of images that are no longer there are kept.
let corrections = new Map(data.corrections.map((row) => [row.path, row]));
const before = [];  // of each change, for undo
let current = null;  // the row of the image that is shown
let unreadable = null;  // why corrections.csv cannot be read: then it is not replaced
let saving = Promise.resolve();  // one after the other, so that the last one stays
let list = null;  // {title, about, images, why, suggested, other, total}
let shown = PAGE;

function remember() {
  try {
    localStorage.setItem(storage, JSON.stringify([...corrections.values()]));
  } catch { /* not allowed here: then the page does not outlive a reload */ }
}

function recall() {
  try {
    for (const row of JSON.parse(localStorage.getItem(storage) ?? "[]")) {
      const stored = corrections.get(row.path);  // as the page was made
      if (!stored || (row.when ?? "") > (stored.when || data.made)) set(row.path, row);
    }
  } catch { /* likewise */ }
}

function set(path, row) {  // at the end: the last line of an image counts
  corrections.delete(path);
  corrections.set(path, row);
}

// Decisions are [row, action, label]; those made together are undone together.
function decide(decisions) {
  before.push(decisions.map(([row]) => [images.path[row], corrections.get(images.path[row])]));
  for (const [row, action, label] of decisions) {
    const path = images.path[row];
    const earlier = corrections.get(path)?.action;
    if (action === "fine" && (images.split[row] === UNLABELED || ["relabel", "add"].includes(earlier))) continue;
    const isNew = action === "relabel" && (images.split[row] === UNLABELED || earlier === "add");
    set(path, {
      path, sha256: images.sha256[row], action: isNew ? "add" : action, label: label ?? "",
      note: "", who: element("who").value, when: new Date().toISOString().slice(0, 19),
    });
  }
  changed();
}
const correct = (rows, action, label) => decide(rows.map((row) => [row, action, label]));

function undo() {
  for (const [path, row] of before.pop() ?? []) row ? set(path, row) : corrections.delete(path);
  changed();
}

function changed() {
  remember();
  if (served) saving = saving.then(save);
  render();
}

const quoted = (text) => /[",\r\n]/.test(text) ? `"${String(text).replaceAll('"', '""')}"` : text;
function asCsv() {
  const rows = [...corrections.values()];
  const names = [...new Set([data.written, ...rows.map(Object.keys)].flat())];
  return [names, ...rows.map((row) => names.map((own) => row[own] ?? ""))].map((cells) => cells.map(quoted).join(",")).join("\n") + "\n";
}

async function save() {
  if (!served) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([asCsv()], { type: "text/csv" }));
    link.download = "corrections.csv";
    link.click();
    return;
  }
  const response = unreadable ? null : await fetch("corrections", { method: "PUT", body: asCsv() }).catch(() => null);
  if (!response?.ok) element("summary").textContent = `Could not be saved: ${unreadable ?? UNREACHABLE}`;
}

// Thumbnails are tiles of sheets, which are decoded when they are first seen.
const sheets = [...document.querySelectorAll(".sheet")];
const urls = [];
function sheetUrl(number) {
  urls[number] ??= URL.createObjectURL(new Blob(
    [Uint8Array.from(atob(sheets[number].textContent), (c) => c.charCodeAt(0))], { type: "image/webp" }));
  return urls[number];
}

function thumb(row) {
  const place = row % data.tiles ** 2;
  const [x, y] = [place % data.tiles, Math.floor(place / data.tiles)].map((n) => -n * data.side);
  const span = document.createElement("span");
  span.className = "thumb";
  span.style.setProperty("--side", `${data.side}px`);
  span.style.background = `url(${sheetUrl(Math.floor(row / data.tiles ** 2))}) ${x}px ${y}px`;
  return span;
}

function node(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...properties });
}

const button = (text, onclick, label) => {
  const made = node("button", text, { type: "button", onclick });
  if (label) made.setAttribute("aria-label", label);
  return made;
};

const name = (row) => images.path[row].split("/").pop();
const described = (row) => images.split[row] === UNLABELED ? UNLABELED : `${images.label[row]}, ${images.split[row]}`;
function decision(row) {
  const own = corrections.get(images.path[row]);
  return own && { relabel: `→ ${own.label}`, add: `→ ${own.label}`, drop: "dropped", fine: "is fine" }[own.action];
}

function actions(row, suggested) {
  const box = node("div", "", { className: "row actions" });
  if (suggested) box.append(button(suggested, () => correct([row], "relabel", suggested), `Relabel ${name(row)} to ${suggested}`));
  box.append(button("drop", () => correct([row], "drop"), `Drop ${name(row)}`));
  if (images.split[row] !== UNLABELED) box.append(button("is fine", () => correct([row], "fine"), `${name(row)} is fine`));
  return box;
}

function relabelMenu(rows, text) {
  const menu = node("select");
  menu.setAttribute("aria-label", text);
  menu.append(node("option", text, { value: "" }), ...classes.map((own) => node("option", own, { value: own })));
  menu.onchange = () => menu.value && correct(rows, "relabel", menu.value);
  return menu;
}

function renderImage() {
  if (current === null) return;
  const box = element("image");
  const title = node("p", `${images.path[current]}: ${described(current)}`);
  const facts = node("p", `The classifier says ${images.prediction[current]}, confidence ${images.confidence[current].toFixed(2)}.`, { className: "quiet" });
  const large = node("img", "", { className: "large", alt: `${name(current)}, ${described(current)}` });
  large.onerror = () => large.replaceWith(thumb(current));
  const encoded = images.path[current].split("/").map(encodeURIComponent).join("/");
  large.src = served ? `images/${current}` : `${data.root}/${encoded}`;
  const row = node("div", "", { className: "row" });
  row.append(relabelMenu([current], "Relabel to…"), ...actions(current, suggestion(current)).children);
  const own = node("p", decision(current) ?? "", { className: "quiet" });
  const others = node("div", "", { className: "row" });
  for (const other of images.nearest[current]) {
    const pick = button("", () => show(other), `${name(other)}, ${described(other)}`);
    pick.append(thumb(other), node("div", described(other)));
    others.append(pick);
  }
  box.replaceChildren(title, large, facts, row, own);
  if (data.attributions[current]) {
    const picture = node("img", "", {
      className: "large attribution", src: `data:image/webp;base64,${data.attributions[current]}`,
      alt: `Grad-CAM: what in the image speaks for ${images.prediction[current]}`,
    });
    box.append(node("p", "What speaks for the prediction (Grad-CAM)", { className: "quiet" }), picture);
  }
  box.append(node("p", "Nearest training images", { className: "quiet" }), others);
}

function suggestion(row) {
  const place = list.images.indexOf(row);
  return list.suggested[place] ?? (images.prediction[row] !== images.label[row] ? images.prediction[row] : undefined);
}

function show(row) {
  current = row;
  render();
}

function renderList() {
  element("list-title").textContent = list.title;
  const more = list.total > list.images.length ? ` The first ${list.images.length} of ${list.total}.` : "";
  element("about").textContent = list.images.length ? list.about + more : `${list.about} There are none.`;
  const open = list.images.filter((row, place) => list.suggested[place] && !corrections.has(images.path[row]));
  element("accept-all").hidden = !list.suggested.length;
  element("accept-all").disabled = !open.length;
  element("together").replaceChildren();
  if (list.selected && list.images.length) {
    element("together").append(relabelMenu(list.images, "Relabel all to…"), button("Drop all", () => correct(list.images, "drop")));
  }
  const items = list.images.slice(0, shown).map((row, place) => {
    const item = node("li", "", { className: `${row === current ? "current " : ""}${decision(row) ? "decided" : ""}` });
    const pick = button("", () => show(row), `${name(row)}, ${described(row)}. ${list.why[place] ?? ""}`);
    pick.className = "pick";
    const thumbs = node("div", "", { className: "thumbs" });
    thumbs.append(thumb(row), ...(list.other.length ? [thumb(list.other[place])] : []));
    pick.append(thumbs, node("div", described(row)), node("div", list.why[place] ?? "", { className: "quiet" }), node("strong", decision(row) ?? ""));
    item.append(pick, actions(row, list.suggested[place]));
    return item;
  });
  element("list").replaceChildren(...items);
  element("more").hidden = shown >= list.images.length;
}

function choose(next) {
  list = next;
  shown = PAGE;
  render();
}

function renderTabs() {
  const tabs = data.lists.map((each) => {
    const tab = button(`${each.title} (${each.total})`, () => choose(each));
    tab.setAttribute("aria-pressed", each === list);
    return tab;
  });
  element("tabs").replaceChildren(...tabs);
}

function render() {
  const all = [...corrections.values()];
  const number = (action) => all.filter((row) => row.action === action).length;
  const added = number("add") ? `, ${number("add")} newly labeled` : "";
  element("summary").textContent = `${count.toLocaleString()} images. Corrections: ${number("relabel")} relabeled${added}, `
    + `${number("drop")} dropped, ${number("fine")} fine. Then: thawline finetune --set dataset.corrections=corrections.csv`;
  element("undo").disabled = !before.length;
  element("save").hidden = served;
  renderTabs();
  renderList();
  renderImage();
  redraw();
}

function selected(rows, title) {
  choose({ title, about: `${rows.length} images.`, images: rows, why: [], suggested: [], other: [], total: rows.length, selected: true });
}

function step(by) {
  const place = list.images.indexOf(current);
  const next = list.images[Math.min(list.images.length - 1, Math.max(0, place + by))];
  if (next === undefined) return;
  shown = Math.max(shown, list.images.indexOf(next) + 1);
  show(next);
  document.querySelector("li.current")?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = { ArrowRight: () => step(1), ArrowLeft: () => step(-1), u: undo };
  if (current !== null) {
    const own = suggestion(current);
    keys.d = () => { correct([current], "drop"); step(1); };
    keys.f = () => { correct([current], "fine"); step(1); };
    if (own) keys.a = () => { correct([current], "relabel", own); step(1); };
    classes.slice(0, 9).forEach((label, idx) => { keys[idx + 1] = () => { correct([current], "relabel", label); step(1); }; });
  }
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});

// The map: points on a canvas, and thumbnails once few are in view.
const PALETTE = data.colors;
const SHADES = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];  // of confidence, rising
const MAX_PICTURES = 80;  // in view, drawn in place of points
const canvas = element("map");
const view = { x: -.03, y: -.03, size: 1.06 };  // the part of the plane from 0 to 1 that is shown
let groups = new Map();  // rows by what they have in common
let lasso = null;  // its corners, while it is drawn
let pictures = [];  // decoded sheets

function groupBy(column) {
  const value = (row) => {
    if (column === "confidence") return `${20 * Math.min(4, Math.floor(5 * images.confidence[row]))} % and more`;
    if (column !== "correct") return images[column][row] || UNLABELED;
    if (images.split[row] === UNLABELED) return UNLABELED;
    return images.label[row] === images.prediction[row] ? "right" : "wrong";
  };
  const found = new Map();
  for (let row = 0; row < count; row++) {
    const key = value(row);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(row);
  }
  const keys = [...found.keys()].sort((one, other) => one.localeCompare(other, undefined, { numeric: true }));
  const colors = column === "confidence" ? SHADES.slice(5 - keys.length) : PALETTE;
  groups = new Map(keys.map((key, idx) => [key, { rows: found.get(key), color: colors[idx % colors.length], isSquare: Math.floor(idx / PALETTE.length) % 2 }]));
  element("legend").replaceChildren(...[...groups].map(([key, group]) => {
    const item = node("span", key);
    const mark = node("span", "", { className: group.isSquare ? "mark square" : "mark" });
    mark.style.background = group.color;
    item.prepend(mark);
    return item;
  }));
  redraw();
}

// In pixels of the canvas, whose shorter side shows `view.size`.
function projection() {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = Math.min(width, height) / view.size;
  return { width, height, scale, left: view.x - (width / scale - view.size) / 2, top: view.y - (height / scale - view.size) / 2 };
}

let waiting = false;
function redraw() {
  if (!waiting) requestAnimationFrame(draw);
  waiting = true;
}

function draw() {
  waiting = false;
  const { width, height, scale, left, top } = projection();
  const ratio = devicePixelRatio;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const radius = Math.max(1.5, Math.min(5, 250 / Math.sqrt(count)) * Math.min(2, 1 / Math.sqrt(view.size)));
  const place = (row) => [(images.x[row] - left) * scale, (images.y[row] - top) * scale];
  const isSeen = ([x, y]) => x > -50 && y > -50 && x < width + 50 && y < height + 50;
  const seen = [];
  for (const { rows, color, isSquare } of groups.values()) {
    context.fillStyle = color;
    for (const row of rows) {
      const at = place(row);
      if (!isSeen(at)) continue;
      if (seen.length <= MAX_PICTURES) seen.push(row);
      if (isSquare || count > 3000) context.fillRect(at[0] - radius, at[1] - radius, 2 * radius, 2 * radius);
      else {
        context.beginPath();
        context.arc(at[0], at[1], radius, 0, 2 * Math.PI);
        context.fill();
      }
    }
  }
  if (seen.length <= MAX_PICTURES && view.size < .9) for (const row of seen) drawPicture(context, row, place(row));
  if (current !== null) {
    context.strokeStyle = getComputedStyle(document.body).color;
    context.lineWidth = 2;
    context.beginPath();
    context.arc(...place(current), radius + 4, 0, 2 * Math.PI);
    context.stroke();
  }
  if (lasso) {
    context.strokeStyle = getComputedStyle(document.body).color;
    context.beginPath();
    for (const corner of lasso) context.lineTo(...corner);
    context.closePath();
    context.stroke();
  }
}

function drawPicture(context, row, [x, y]) {
  const { side, tiles } = data;
  const [number, tile] = [Math.floor(row / tiles ** 2), row % tiles ** 2];
  pictures[number] ??= Object.assign(new Image(), { src: sheetUrl(number), onload: redraw });
  if (!pictures[number].complete) return;
  const from = [tile % tiles * side, Math.floor(tile / tiles) * side];
  context.drawImage(pictures[number], ...from, side, side, x + 6, y - 24, 48, 48);
}

const at = (event) => [event.offsetX, event.offsetY];

function nearest([x, y], within = 12) {
  const { scale, left, top } = projection();
  let best = null;
  let least = within ** 2;
  for (let row = 0; row < count; row++) {
    const distance = ((images.x[row] - left) * scale - x) ** 2 + ((images.y[row] - top) * scale - y) ** 2;
    if (distance < least) [best, least] = [row, distance];
  }
  return best;
}

function zoom(factor, [x, y] = [canvas.clientWidth / 2, canvas.clientHeight / 2]) {
  const before = projection();
  const [px, py] = [before.left + x / before.scale, before.top + y / before.scale];
  view.size = Math.min(2, Math.max(.005, view.size / factor));
  const after = projection();
  view.x += px - (after.left + x / after.scale);
  view.y += py - (after.top + y / after.scale);
  redraw();
}

function isInside(x, y, corners) {
  let inside = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [[ax, ay], [bx, by]] = [corners[i], corners[j]];
    if ((ay > y) !== (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

let pressed = null;  // where, and whether it has moved since
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pressed = { at: at(event), moved: false };
  if (element("lasso").getAttribute("aria-pressed") === "true" || event.shiftKey) lasso = [at(event)];
});
canvas.addEventListener("pointermove", (event) => {
  const [x, y] = at(event);
  if (!pressed) {
    const row = nearest([x, y]);
    element("hovered").textContent = row === null ? "" : `${images.path[row]}: ${described(row)}; the classifier says ${images.prediction[row]}`;
    return;
  }
  pressed.moved ||= Math.hypot(x - pressed.at[0], y - pressed.at[1]) > 3;
  if (lasso) lasso.push([x, y]);
  else if (pressed.moved) {
    const { scale } = projection();
    view.x -= (x - pressed.at[0]) / scale;
    view.y -= (y - pressed.at[1]) / scale;
    pressed.at = [x, y];
  }
  redraw();
});
canvas.addEventListener("pointerup", (event) => {
  if (lasso && pressed.moved) {
    const { scale, left, top } = projection();
    const rows = images.path.map((_, row) => row);
    selected(rows.filter((row) => isInside((images.x[row] - left) * scale, (images.y[row] - top) * scale, lasso)), "Selection");
  } else if (!pressed?.moved) {
    const row = nearest(at(event));
    if (row !== null) show(row);
  }
  [pressed, lasso] = [null, null];
  redraw();
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, at(event));
}, { passive: false });

element("zoom-in").onclick = () => zoom(1.5);
element("zoom-out").onclick = () => zoom(1 / 1.5);
element("whole").onclick = () => {
  Object.assign(view, { x: -.03, y: -.03, size: 1.06 });
  redraw();
};
element("lasso").onclick = () => {
  const isOn = element("lasso").getAttribute("aria-pressed") === "true";
  element("lasso").setAttribute("aria-pressed", !isOn);
};
new ResizeObserver(redraw).observe(canvas);
element("undo").onclick = undo;
element("save").onclick = save;
element("more").onclick = () => { shown += PAGE; render(); };
element("accept-all").onclick = () => decide(list.images
  .map((row, place) => [row, "relabel", list.suggested[place]])
  .filter(([row, , label]) => label && !corrections.has(images.path[row])));
element("color").onchange = () => groupBy(element("color").value);
element("who").onchange = () => { try { localStorage.setItem("thawline who", element("who").value); } catch { /* as above */ } };
element("search").onchange = () => {
  const word = element("search").value.toLowerCase();
  if (!word) return choose(data.lists[0]);
  const rows = images.path.map((_, row) => row);
  selected(rows.filter((row) => `${images.path[row]} ${images.label[row]}`.toLowerCase().includes(word)), `Search: ${word}`);
};

async function begin() {
  try { element("who").value = localStorage.getItem("thawline who") ?? ""; } catch { /* as above */ }
  if (served) await read();
  else recall();
  choose(data.lists[0]);
  if (unreadable) element("summary").textContent = unreadable;
}

async function read() {
  const response = await fetch("corrections").catch(() => null);
  const found = await response?.json();
  if (response?.ok) corrections = new Map(found.map((row) => [row.path, row]));
  else unreadable = found?.detail ?? UNREACHABLE;
}

begin();
groupBy("label");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
