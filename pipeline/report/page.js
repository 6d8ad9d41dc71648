"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const BOX = { left: 46, right: 8, top: 8, bottom: 20, height: 168 };
  const root = document.documentElement;
  const curves = JSON.parse(document.getElementById("curve-data").textContent);

  // What the reader chose outlives the reloads of a page that is written anew; a private mode may forbid it.
  const PLACE = `triptych ${location.pathname}`;
  const chosen = (() => {
    try { return JSON.parse(sessionStorage.getItem(PLACE)) || {}; } catch { return {}; }
  })();
  const options = { log: Boolean(chosen.log), smooth: chosen.smooth || 0 };
  root.style.colorScheme = chosen.theme || "";
  // Folds are known by their words, for their number may grow; counts in the words may change.
  const folds = () => {
    const times = {};
    return [...document.querySelectorAll("details")].map((fold) => {
      const words = fold.querySelector("summary").textContent.replace(/\d+/g, "");
      times[words] = (times[words] || 0) + 1;
      return [fold, `${words} ${times[words]}`];
    });
  };
  if (chosen.open) for (const [fold, name] of folds()) fold.open = chosen.open.includes(name);
  addEventListener("pagehide", () => {
    const reference = document.getElementById("reference");
    const kept = { theme: root.style.colorScheme, ...options, reference: reference ? reference.value : "" };
    kept.open = folds().filter(([fold]) => fold.open).map(([, name]) => name);
    try { sessionStorage.setItem(PLACE, JSON.stringify(kept)); } catch { /* Nothing is kept then. */ }
  });

  // The page follows the system's theme until its reader chooses.
  const themeButton = document.getElementById("theme");
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    const now = root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.style.colorScheme = now === "dark" ? "light" : "dark";
  });
  addEventListener("beforeprint", () => plots.filter((plot) => plot.place.clientWidth).forEach((plot) => plot.draw()));

  const text = (value) => {
    if (value === null) return "not finite";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-4) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  };

  const make = (parent, tag, attributes, content) => {
    const element = document.createElementNS(SVG, tag);
    for (const name in attributes) element.setAttribute(name, attributes[name]);
    if (content !== undefined) element.textContent = content;
    parent.appendChild(element);
    return element;
  };

  const ticks = (low, high, count) => {
    if (high <= low) return [low];
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
      found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
    }
    return found;
  };

  // Exponential moving average without the pull to zero at its start.
  const smoothed = (values, weight) => {
    let sum = 0, share = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      share = weight * share + (1 - weight);
      return sum / share;
    });
  };

  class Plot {
    constructor(figure) {
      this.figure = figure;
      this.data = curves[Number(figure.dataset.curve)];
      this.place = figure.querySelector(".plot");
      this.readout = figure.querySelector(".readout");
      this.resting = this.readout.textContent;
      this.across = this.data.across ? this.data.across[0] : "";
      this.range = null;
      this.index = null;
      this.drawn = false;
      this.listen();
    }

    listen() {
      let from = null;
      const at = (event) => event.clientX - this.place.getBoundingClientRect().left;
      this.place.addEventListener("pointerdown", (event) => {
        if (event.pointerType !== "mouse") return;
        from = at(event);
        this.place.setPointerCapture(event.pointerId);
      });
      this.place.addEventListener("pointermove", (event) => {
        this.point(this.nearest(at(event)));
        if (from !== null) this.shade(from, at(event));
      });
      this.place.addEventListener("pointerup", (event) => {
        const to = at(event);
        if (from !== null && Math.abs(to - from) > 8) {
          this.range = [this.step(Math.min(from, to)), this.step(Math.max(from, to))];
          this.draw();
        }
        from = null;
        this.shade(0, 0);
      });
      this.place.addEventListener("pointerleave", () => this.point(null));
      this.place.addEventListener("dblclick", () => { this.range = null; this.draw(); });
      this.figure.addEventListener("blur", () => this.point(null));
      this.figure.addEventListener("keydown", (event) => this.key(event));
    }

    key(event) {
      if (!this.drawn) this.draw();
      const last = this.shown.length - 1;
      const here = this.index === null ? -1 : this.shown.indexOf(this.index);
      const go = {
        ArrowRight: Math.min(last, here + 1), ArrowLeft: Math.max(0, here - 1), Home: 0, End: last,
      }[event.key];
      if (go !== undefined && last >= 0) {
        event.preventDefault();
        this.point(this.shown[go]);
      } else if (event.key === "Escape") {
        this.range = null;
        this.point(null);
        this.draw();
      }
    }

    draw() {
      const { steps, values, other } = this.data;
      const all = other ? [...steps, ...other.steps] : steps;
      const [first, last] = this.range || [Math.min(...all), Math.max(...all)];
      this.width = Math.max(160, this.place.clientWidth);
      this.place.replaceChildren();
      this.svg = make(this.place, "svg", { viewBox: `0 0 ${this.width} ${BOX.height}`, "aria-hidden": "true" });
      const usable = (value) => value !== null && (!options.log || value > 0);
      const smooth = this.across ? 0 : options.smooth;
      const line = smooth ? smoothed(values, smooth) : values;
      this.shown = steps.map((_, i) => i).filter((i) => steps[i] >= first && steps[i] <= last && usable(values[i]));
      this.drawn = true;
      if (!this.shown.length) {
        const why = options.log && values.some((v) => v !== null) ? "no value above 0 to show on a log scale" : "no finite value";
        make(this.svg, "text", { x: this.width / 2, y: BOX.height / 2, class: "empty", "text-anchor": "middle" }, why);
        return;
      }
      const scale = (value) => (options.log ? Math.log10(value) : value);
      const beside = other ? other.steps.map((_, i) => i)
        .filter((i) => other.steps[i] >= first && other.steps[i] <= last && usable(other.values[i])) : [];
      const heights = [...this.shown.map((i) => scale(values[i])), ...beside.map((i) => scale(other.values[i]))];
      let low = Math.min(...heights), high = Math.max(...heights);
      if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= pad; high += pad; }
      const pad = (high - low) * 0.06;
      low -= pad; high += pad;
      const right = this.width - BOX.right, bottom = BOX.height - BOX.bottom;
      this.x = (step) => BOX.left + (last > first ? (step - first) / (last - first) : 0.5) * (right - BOX.left);
      this.y = (value) => bottom - (scale(value) - low) / (high - low) * (bottom - BOX.top);
      this.step = (pixel) => first + (pixel - BOX.left) / (right - BOX.left) * (last - first);
      this.axes(low, high, first, last, right, bottom);
      if (beside.length) {
        const second = smooth ? smoothed(other.values, smooth) : other.values;
        this.line(second, "raw beside", usable, other.steps, beside);
      }
      if (this.across) this.spots(steps, values);
      else if (smooth) this.line(values, "raw faint", usable);
      if (!this.across) this.line(line, smooth ? "smooth" : "raw", usable);
      this.band = make(this.svg, "rect", { class: "zoom", y: BOX.top, height: bottom - BOX.top, width: 0 });
      this.cursor = make(this.svg, "g", { visibility: "hidden" });
      make(this.cursor, "line", { class: "cursor", y1: BOX.top, y2: bottom });
      make(this.cursor, "circle", { class: "mark", r: 4.5 });
    }

    axes(low, high, first, last, right, bottom) {
      let rows = ticks(low, high, 4);
      if (options.log) {
        const whole = ticks(Math.ceil(low), Math.floor(high), 4).filter(Number.isInteger);
        // Within a decade, round numbers read better than round logarithms.
        rows = whole.length > 1 ? whole : ticks(10 ** low, 10 ** high, 4).filter((tick) => tick > 0).map(Math.log10);
      }
      for (const tick of rows) {
        const y = this.y(options.log ? 10 ** tick : tick);
        make(this.svg, "line", { class: "grid", x1: BOX.left, x2: right, y1: y, y2: y });
        make(this.svg, "text", { class: "tick", x: BOX.left - 6, y: y + 4, "text-anchor": "end" }, text(options.log ? 10 ** tick : tick));
      }
      const columns = ticks(first, last, 4).filter((tick) => this.across || Number.isInteger(tick));
      for (const tick of columns.length ? columns : [first]) {
        make(this.svg, "text", { class: "tick", x: this.x(tick), y: bottom + 15, "text-anchor": "middle" }, text(tick));
      }
    }

    line(values, name, usable, steps = this.data.steps, shown = this.shown) {
      let path = "", open = false, before = -2;
      for (const i of shown) {
        // A value that is not finite between two points is a gap, not a bridge.
        open = open && !values.slice(before + 1, i).some((value) => value === null);
        if (usable(values[i])) path += `${open ? "L" : "M"}${this.x(steps[i]).toFixed(1)} ${this.y(values[i]).toFixed(1)}`;
        open = true;
        before = i;
      }
      make(this.svg, "path", { class: name, d: path });
      if (shown.length === 1) {
        const only = shown[0];
        make(this.svg, "circle", { class: "lone", r: 3.5, cx: this.x(steps[only]), cy: this.y(values[only]) });
      }
    }

    // Over another metric there is no left to right: a point each, darker with time.
    spots(steps, values) {
      this.shown.forEach((i, order) => {
        const opacity = 0.15 + 0.75 * (order + 1) / this.shown.length;
        make(this.svg, "circle", { class: "lone", r: 2.6, opacity, cx: this.x(steps[i]), cy: this.y(values[i]) });
      });
    }

    nearest(pixel) {
      if (!this.shown || !this.shown.length) return null;
      const step = this.step(pixel), { steps } = this.data;
      return this.shown.reduce((best, i) => (Math.abs(steps[i] - step) < Math.abs(steps[best] - step) ? i : best));
    }

    point(index) {
      this.index = index;
      if (!this.cursor) return;
      this.cursor.setAttribute("visibility", index === null ? "hidden" : "visible");
      if (index === null) { this.readout.textContent = this.resting; return; }
      const step = this.data.steps[index], value = this.data.values[index];
      const [line, mark] = this.cursor.children;
      for (const side of ["x1", "x2"]) line.setAttribute(side, this.x(step));
      mark.setAttribute("cx", this.x(step));
      mark.setAttribute("cy", this.y(value));
      const where = this.across ? `${this.across} ${text(step)}` : `step ${step}`;
      this.readout.textContent = `${where}: ${text(value)}${this.otherAt(step)}`;
    }

    // What the other run had at the step nearest to this one.
    otherAt(step) {
      const { other } = this.data;
      if (!other || !other.steps.length) return "";
      const near = other.steps.reduce((best, at, i) => (Math.abs(at - step) < Math.abs(other.steps[best] - step) ? i : best), 0);
      return ` · ${text(other.values[near])}`;
    }

    shade(from, to) {
      if (!this.band) return;
      this.band.setAttribute("x", Math.max(BOX.left, Math.min(from, to)));
      this.band.setAttribute("width", Math.abs(to - from));
    }
  }

  const plots = [...document.querySelectorAll("figure.chart")].map((figure) => new Plot(figure));
  const AHEAD = 300;
  const byPlace = new Map(plots.map((plot) => [plot.place, plot]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const plot = byPlace.get(entry.target);
      if (entry.isIntersecting && !plot.drawn) plot.draw();
    }
  }, { rootMargin: `${AHEAD}px` });
  // What is in sight is drawn at once, the rest when it comes near. Where a stage that is far away has
  // its charts is not asked: the browser would have to lay them out to say.
  const near = (element) => {
    const { top, width } = element.getBoundingClientRect();
    return width > 0 && top < innerHeight + AHEAD;
  };
  const close = new Map([...document.querySelectorAll(".stage-curves")].map((group) => [group, near(group)]));
  for (const plot of plots) {
    if (close.get(plot.figure.closest(".stage-curves")) && near(plot.place)) plot.draw();
    else seen.observe(plot.place);
  }
  // A page of ordinary size is then drawn whole, for pictures of the whole page.
  const MOST_AT_ONCE = 150;
  if (plots.length <= MOST_AT_ONCE && window.requestIdleCallback) {
    requestIdleCallback(() => plots.forEach((plot) => { if (!plot.drawn && plot.place.clientWidth) plot.draw(); }));
  }
  const again = () => plots.forEach((plot) => { if (plot.drawn) plot.draw(); });
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(again, 120); });

  const tools = document.getElementById("curve-tools");
  if (tools) {
    tools.hidden = false;
    document.getElementById("log").checked = options.log;
    document.getElementById("smooth").value = options.smooth * 100;
    document.getElementById("log").addEventListener("change", (event) => { options.log = event.target.checked; again(); });
    document.getElementById("smooth").addEventListener("input", (event) => {
      options.smooth = Number(event.target.value) / 100;
      again();
    });
  }

  // Marks the words of each answer that the chosen answer to the same prompt lacks.
  const words = (string) => string.split(/(\s+)/).filter((part) => part);
  const kept = (from, to) => {
    const table = Array.from({ length: from.length + 1 }, () => new Uint16Array(to.length + 1));
    for (let i = from.length - 1; i >= 0; i--) {
      for (let j = to.length - 1; j >= 0; j--) {
        table[i][j] = from[i] === to[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
      }
    }
    const same = new Set();
    for (let i = 0, j = 0; i < from.length && j < to.length;) {
      if (from[i] === to[j]) { same.add(j); i++; j++; } else if (table[i + 1][j] >= table[i][j + 1]) i++; else j++;
    }
    return same;
  };
  const MOST_WORDS = 1500;
  const markAnswer = (place, reference) => {
    const to = words(place.textContent);
    place.replaceChildren(place.textContent);
    if (reference === null || to.length > MOST_WORDS) return;
    // Spaces are shown, not compared.
    const at = to.map((_, j) => j).filter((j) => to[j].trim());
    const from = words(reference).filter((word) => word.trim()).slice(0, MOST_WORDS);
    const same = new Set([...kept(from, at.map((j) => to[j]))].map((order) => at[order]));
    place.replaceChildren(...to.map((word, j) => {
      if (same.has(j) || !word.trim()) return word;
      const mark = document.createElement("mark");
      mark.textContent = word;
      return mark;
    }));
  };
  const chooser = document.getElementById("reference");
  if (chooser) {
    document.getElementById("sample-tools").hidden = false;
    chooser.value = chosen.reference || "";
    const mark = () => {
      for (const card of document.querySelectorAll(".sample")) {
        const answers = [...card.querySelectorAll(".answer")];
        const found = answers.find((answer) => answer.dataset.name === chooser.value);
        // An empty answer holds a remark in place of its text.
        const textOf = (answer) => answer.querySelector("p:not(.nothing)");
        const reference = found && textOf(found) ? textOf(found).textContent : "";
        for (const answer of answers.filter(textOf)) markAnswer(textOf(answer), found && answer !== found ? reference : null);
      }
    };
    chooser.addEventListener("change", mark);
    if (chooser.value) mark();
  }

  // A link to a folded part opens it.
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();
})();
