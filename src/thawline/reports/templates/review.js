const data = JSON.parse(document.querySelector("#data").textContent);
const served = location.protocol.startsWith("http");
const { images, classes } = data;
const count = images.path.length;
const rowOf = new Map(images.path.map((path, row) => [path, row]));
const storage = `thawline review of ${data.data}`;
const element = (name) => document.querySelector(`#${name}`);
const PAGE = 60;  // images that a list shows at first, and more at a time
const UNLABELED = "unlabeled";

// Corrections by path, as they are written; those of images that are no longer there are kept.
let corrections = new Map(data.corrections.map((row) => [row.path, row]));
const before = [];  // of each change, for undo
let current = null;  // the row of the image that is shown
let list = null;  // {title, about, images, why, suggested, other, total}
let shown = PAGE;

function remember() {
  try {
    localStorage.setItem(storage, JSON.stringify([...corrections.values()]));
  } catch { /* not allowed here: then the page does not outlive a reload */ }
}

function recall() {
  try {
    for (const row of JSON.parse(localStorage.getItem(storage) ?? "[]")) corrections.set(row.path, row);
    element("who").value = localStorage.getItem("thawline who") ?? "";
  } catch { /* likewise */ }
}

// Decisions are [row, action, label]; those made together are undone together.
function decide(decisions) {
  before.push(decisions.map(([row]) => [images.path[row], corrections.get(images.path[row])]));
  for (const [row, action, label] of decisions) {
    const path = images.path[row];
    const isNew = images.split[row] === UNLABELED && action === "relabel";
    corrections.set(path, {
      path, sha256: images.sha256[row], action: isNew ? "add" : action, label: label ?? "",
      note: "", who: element("who").value, when: new Date().toISOString().slice(0, 19),
    });
  }
  changed();
}
const correct = (rows, action, label) => decide(rows.map((row) => [row, action, label]));

function undo() {
  for (const [path, row] of before.pop() ?? []) row ? corrections.set(path, row) : corrections.delete(path);
  changed();
}

function changed() {
  remember();
  if (served) save();
  render();
}

const quoted = (text) => /[",\r\n]/.test(text) ? `"${String(text).replaceAll('"', '""')}"` : text;
const asCsv = () => [data.written, ...[...corrections.values()].map((row) => data.written.map((name) => row[name] ?? ""))]
  .map((cells) => cells.map(quoted).join(",")).join("\n") + "\n";

async function save() {
  if (!served) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([asCsv()], { type: "text/csv" }));
    link.download = "corrections.csv";
    link.click();
    return;
  }
  const response = await fetch("corrections", { method: "PUT", body: asCsv() }).catch(() => null);
  if (!response?.ok) element("summary").textContent = "Could not be saved: is thawline review --serve still running?";
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

// The map
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c8c8c"];

const hasWebGl = document.createElement("canvas").getContext("webgl") !== null;

function traces(by) {
  const point = { x: images.x, y: images.y };
  const size = Math.max(3, Math.min(8, 500 / Math.sqrt(count)));
  const text = images.path.map((path, row) => `${path}<br>${described(row)}<br>prediction ${images.prediction[row]}`);
  const common = { type: hasWebGl ? "scattergl" : "scatter", mode: "markers", hoverinfo: "text" };
  const rows = images.path.map((_, row) => row);
  if (by === "confidence") {
    const marker = { size, color: images.confidence, colorscale: "Viridis", colorbar: { title: { text: "confidence" } } };
    return [{ ...common, ...point, text, customdata: rows, marker, showlegend: false }];
  }
  const value = (row) => by !== "correct" ? images[by][row] || UNLABELED
    : images.split[row] === UNLABELED ? UNLABELED : images.label[row] === images.prediction[row] ? "right" : "wrong";
  const groups = Map.groupBy(rows, value);
  return [...groups.keys()].sort().map((key, idx) => {
    const own = groups.get(key);
    const pick = (column) => own.map((row) => column[row]);
    const symbol = ["circle", "diamond", "square", "cross"][Math.floor(idx / PALETTE.length) % 4];
    const marker = { size, color: PALETTE[idx % PALETTE.length], symbol, opacity: .8 };
    return { ...common, x: pick(images.x), y: pick(images.y), text: pick(text), customdata: own, name: key, marker };
  });
}

function drawMap() {
  const style = getComputedStyle(document.documentElement);
  const color = (own) => style.getPropertyValue(`--${own}`).trim();
  const axis = { visible: false, range: [-.03, 1.03] };
  Plotly.react("map", traces(element("color").value), {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("text") },
    margin: { l: 0, r: 0, t: 0, b: 0 }, xaxis: axis, yaxis: axis, dragmode: "pan", hovermode: "closest",
    uirevision: "map", legend: { itemsizing: "constant", orientation: "h", x: 0, y: 0, yanchor: "top" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: color("quiet"), activecolor: color("accent") },
    hoverlabel: { bgcolor: color("card"), font: { color: color("text") } },
  }, {
    responsive: true, scrollZoom: true, displaylogo: false, displayModeBar: true,
    modeBarButtons: [["pan2d", "lasso2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  });
}

element("undo").onclick = undo;
element("save").onclick = save;
element("more").onclick = () => { shown += PAGE; render(); };
element("accept-all").onclick = () => decide(list.images
  .map((row, place) => [row, "relabel", list.suggested[place]])
  .filter(([row, , label]) => label && !corrections.has(images.path[row])));
element("color").onchange = drawMap;
element("who").onchange = () => { try { localStorage.setItem("thawline who", element("who").value); } catch { /* as above */ } };
element("search").onchange = () => {
  const word = element("search").value.toLowerCase();
  if (!word) return choose(data.lists[0]);
  const rows = images.path.map((_, row) => row);
  selected(rows.filter((row) => `${images.path[row]} ${images.label[row]}`.toLowerCase().includes(word)), `Search: ${word}`);
};

async function begin() {
  recall();
  if (served) for (const row of await (await fetch("corrections")).json()) corrections.set(row.path, row);
  choose(data.lists[0]);
}

begin();
loadPlotly().then(() => {
  drawMap();
  const map = element("map");
  map.on("plotly_click", (event) => show(event.points[0].customdata));
  map.on("plotly_selected", (event) => event?.points.length && selected(event.points.map((point) => point.customdata), "Selection"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
});
