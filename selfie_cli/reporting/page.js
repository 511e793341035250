"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

function nearest(count, distance) {
  let best = -1, least = Infinity;
  for (let i = 0; i < count; i++) {
    const d = distance(i);
    if (d < least) { least = d; best = i; }
  }
  return best;
}

function inside(svg, event) {
  const point = new DOMPoint(event.clientX, event.clientY);
  return point.matrixTransform(svg.getScreenCTM().inverse());
}

document.querySelectorAll("svg.chart").forEach((svg, number) => {
  const stops = data.charts[number], cursor = svg.querySelector(".cursor");
  const told = svg.parentElement.querySelector("output"), before = told.textContent;
  let at = stops.length - 1;
  const show = (index) => {
    at = Math.max(0, Math.min(stops.length - 1, index));
    cursor.setAttribute("x1", stops[at][0]);
    cursor.setAttribute("x2", stops[at][0]);
    cursor.style.visibility = "visible";
    told.textContent = stops[at][1];
  };
  const hide = () => { cursor.style.visibility = "hidden"; told.textContent = before; };
  const point = (event) => {
    const x = inside(svg, event).x;
    show(nearest(stops.length, (i) => Math.abs(stops[i][0] - x)));
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(at + step);
  });
});

const map = document.querySelector(".map");
if (map) {
  const svg = map.querySelector("svg"), circles = [...svg.querySelectorAll("circle")];
  const xs = circles.map((c) => Number(c.getAttribute("cx"))), ys = circles.map((c) => Number(c.getAttribute("cy")));
  const tip = map.querySelector(".tip"), picture = tip.querySelector("img"), told = tip.querySelectorAll("b, span");
  const { names, labels, classes, columns, side } = data.map;
  let here = -1;
  const hide = () => {
    tip.hidden = true;
    if (here >= 0) circles[here].classList.remove("here");
    here = -1;
  };
  const show = (index) => {
    if (here >= 0) circles[here].classList.remove("here");
    here = index;
    circles[here].classList.add("here");
    told[0].textContent = labels ? classes[labels[here]] : "";
    told[1].textContent = names[here];
    const scale = 134 / side;
    picture.style.transform = `translate(${-(here % columns) * 134}px, ${-Math.floor(here / columns) * 134}px) scale(${scale})`;
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), around = map.getBoundingClientRect(), dot = circles[here].getBoundingClientRect();
    const x = dot.left + dot.width / 2 - around.left, y = dot.top + dot.height / 2 - around.top;
    const left = x < box.width / 2 ? x + 14 : x - 14 - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(box.width - tip.offsetWidth, left))}px`;
    tip.style.top = `${Math.max(0, Math.min(box.height - tip.offsetHeight, y - tip.offsetHeight / 2))}px`;
  };
  const shown = (i) => !circles[i].classList.contains("off");
  const point = (event) => {
    const at = inside(svg, event);
    const index = nearest(circles.length, (i) => (shown(i) ? Math.hypot(xs[i] - at.x, ys[i] - at.y) : Infinity));
    if (index >= 0 && Math.hypot(xs[index] - at.x, ys[index] - at.y) < svg.viewBox.baseVal.width / 12) show(index);
    else hide();
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  svg.addEventListener("focus", () => { if (here < 0) show(circles.findIndex((_, i) => shown(i))); });
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    if (here < 0) return show(circles.findIndex((_, i) => shown(i)));
    const index = nearest(circles.length, (i) => {
      const dx = xs[i] - xs[here], dy = ys[i] - ys[here], ahead = dx * way[0] + dy * way[1];
      return i !== here && shown(i) && ahead > 0 ? ahead + 2 * Math.abs(dx * way[1] + dy * way[0]) : Infinity;
    });
    if (index >= 0) show(index);
  });
  const buttons = [...document.querySelectorAll("button[data-class]")];
  buttons.forEach((button) => button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const chosen = buttons.filter((b) => b.getAttribute("aria-pressed") === "true").map((b) => Number(b.dataset.class));
    circles.forEach((c, i) => c.classList.toggle("off", chosen.length > 0 && !chosen.includes(labels[i])));
    hide();
  }));
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
