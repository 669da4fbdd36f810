"use strict";
(() => {
  const hovers = JSON.parse(document.getElementById("hovers").textContent);
  const tip = document.getElementById("tip");
  const SVG = "http://www.w3.org/2000/svg";
  let shown = null;

  const clear = () => {
    if (shown) shown.remove();
    shown = null;
    tip.hidden = true;
  };

  const made = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const key of Object.keys(attributes)) element.setAttribute(key, attributes[key]);
    return element;
  };

  const nearest = (places, x) => {
    let best = 0;
    for (let at = 1; at < places.length; at += 1) {
      if (Math.abs(places[at] - x) < Math.abs(places[best] - x)) best = at;
    }
    return best;
  };

  const put = (text) => {
    tip.textContent = "";
    const head = document.createElement("b");
    head.textContent = text[0];
    tip.append(head);
    text.slice(1).forEach((line, at) => {
      if (at) tip.append(document.createElement("br"));
      tip.append(line);
    });
    tip.hidden = false;
  };

  const show = (plot, at) => {
    const told = hovers[plot.id];
    const svg = plot.querySelector("svg");
    clear();
    shown = made("g", { "pointer-events": "none" });
    shown.append(made("path", { class: "cross", d: `M${told.x[at]} ${told.box[0]}V${told.box[1]}` }));
    for (const row of told.rows) {
      if (row.py[at] === null) continue;
      shown.append(made("circle", { class: `dot t${row.tone}`, cx: told.x[at], cy: row.py[at], r: 3.4 }));
    }
    svg.append(shown);
    put([told.at[at], ...told.rows.map((row) => `${row.name}: ${row.y[at]}`)]);
    const box = svg.getBoundingClientRect();
    const x = box.left + (told.x[at] * box.width) / svg.viewBox.baseVal.width;
    const left = x + 14 + tip.offsetWidth > window.innerWidth ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(box.top + 8, window.innerHeight - tip.offsetHeight - 8))}px`;
    plot.dataset.at = at;
  };

  for (const plot of document.querySelectorAll("[data-hover]")) {
    const svg = plot.querySelector("svg");
    const count = hovers[plot.id].x.length;
    plot.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
      show(plot, nearest(hovers[plot.id].x, x));
    });
    plot.addEventListener("pointerleave", clear);
    plot.addEventListener("blur", clear);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -count, End: count }[event.key];
      if (event.key === "Escape") clear();
      if (!step) return;
      event.preventDefault();
      const before = plot.dataset.at === undefined ? (step > 0 ? -1 : count) : Number(plot.dataset.at);
      show(plot, Math.max(0, Math.min(count - 1, before + step)));
    });
  }
  window.addEventListener(
    "scroll",
    () => {
      const plot = document.activeElement;
      if (shown && plot && plot.contains(shown)) show(plot, Number(plot.dataset.at));
      else clear();
    },
    { passive: true },
  );

  const folds = [];
  window.addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details.layer:not([open]), details.tensor:not([open])")) {
      fold.open = true;
      folds.push(fold);
    }
  });
  window.addEventListener("afterprint", () => {
    for (const fold of folds.splice(0)) fold.open = false;
  });

  const live = document.getElementById("live");
  if (live) {
    const key = "mldb-report-live";
    let timer = 0;
    const start = () => {
      timer = window.setTimeout(() => window.location.reload(), Number(live.dataset.seconds) * 1000);
    };
    try {
      live.checked = window.sessionStorage.getItem(key) === "1";
    } catch { /* a browser that keeps nothing for files */ }
    if (live.checked) start();
    live.addEventListener("change", () => {
      try {
        window.sessionStorage.setItem(key, live.checked ? "1" : "0");
      } catch { /* as above */ }
      window.clearTimeout(timer);
      if (live.checked) start();
    });
  }
})();
