(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("data").textContent);
  var form = document.getElementById("filters");
  var list = document.getElementById("items");
  var pages = document.getElementById("pages");
  var shown = document.getElementById("shown");
  var PER_PAGE = 25, LONGEST_DIFF = 600;
  var NAMES = ["method", "seed", "stage", "outcome", "against"];
  var lower = data.texts.map(function (text) { return text.toLowerCase(); });
  var page = 0;

  function element(name, text, role) {
    var made = document.createElement(name);
    if (text) made.textContent = text;
    if (role) made.className = role;
    return made;
  }

  function fill(name, options) {
    var select = form.elements[name], before = select.value;
    select.replaceChildren.apply(select, options.map(function (option) {
      var made = element("option", String(option[1]));
      made.value = option[0];
      return made;
    }));
    if (options.some(function (option) { return String(option[0]) === before; })) select.value = before;
  }

  function unique(values) { return Array.from(new Set(values)); }

  function runOf(method, seed) {
    var found = data.runs.filter(function (run) { return run.method === method; });
    return found.filter(function (run) { return String(run.seed) === seed; })[0] || found[0] || data.runs[0];
  }

  function stagesOf(run) { return Object.keys(run.answers).map(Number).sort(function (a, b) { return a - b; }); }

  // What can be chosen depends on the run: its seeds, its stages, the other runs.
  function offer() {
    fill("method", unique(data.runs.map(function (run) { return run.method; })).map(function (name) { return [name, name]; }));
    var seeds = data.runs.filter(function (run) { return run.method === form.elements.method.value; });
    fill("seed", seeds.map(function (run) { return [run.seed, run.seed]; }));
    var run = runOf(form.elements.method.value, form.elements.seed.value);
    fill("stage", [["", "all stages"]].concat(stagesOf(run).map(function (stage) { return [stage, run.names[stage]]; })));
    fill("outcome", [["", "all"]].concat(data.outcomes.map(function (name) { return [name, name]; }),
      [["lost", "lost"], ["gained", "gained"], ["changed", "text changed"]]));
    var others = data.runs.filter(function (other) { return other !== run; }).map(function (other) {
      var name = other.method + ", seed " + other.seed;
      return ["run " + data.runs.indexOf(other), name];
    });
    fill("against", [["before", "the stage before"], ["start", "the start"]].concat(
      run.own ? [["own", "after its own stage"]] : [], others));
    return run;
  }

  // The answer that one of a run's stages is compared with: null where there is none.
  function comparison(run, stage) {
    var against = form.elements.against.value, other = run, at = stage;
    if (against === "before") at = Math.max.apply(null, stagesOf(run).filter(function (each) { return each < stage; }));
    if (against === "start") at = 0;
    if (against === "own") at = run.own;
    if (against.slice(0, 4) === "run ") other = data.runs[Number(against.slice(4))];
    if ((other === run && at >= stage) || !other.answers[at]) return null;
    var name = other.names[at];
    return {run: other, stage: at, title: other === run ? name : other.method + ", seed " + other.seed + ", " + name};
  }

  function answers(run, stage, item) { return (run.answers[stage] && run.answers[stage][item]) || null; }

  // Of several answers the first that is not right stands for the item, as in the report's counts.
  function verdict(entry) {
    for (var i = 1; i < entry.length; i += 2) if (data.outcomes[entry[i]] !== "correct") return data.outcomes[entry[i]] || "";
    return "correct";
  }

  function change(entry, before) {
    var was = verdict(before) === "correct", now = verdict(entry) === "correct";
    return was && !now ? "lost" : !was && now ? "gained" : "";
  }

  function texts(entry) { return entry.filter(function (_, i) { return i % 2 === 0; }).join(" "); }

  function fits(run, stage, item, wanted) {
    var entry = answers(run, stage, item);
    if (!entry) return false;
    if (!wanted) return true;
    if (wanted === "lost" || wanted === "gained" || wanted === "changed") {
      var other = comparison(run, stage), before = other && answers(other.run, other.stage, item);
      if (!before) return false;
      return wanted === "changed" ? texts(entry) !== texts(before) : change(entry, before) === wanted;
    }
    return entry.some(function (value, i) { return i % 2 && data.outcomes[value] === wanted; });
  }

  function search(run, item, words) {
    var places = [data.items[item][1], data.items[item][2]];
    stagesOf(run).forEach(function (stage) {
      (answers(run, stage, item) || []).forEach(function (value, i) { if (i % 2 === 0) places.push(value); });
    });
    var text = data.items[item][0].toLowerCase() + "\n" + places.map(function (place) { return lower[place]; }).join("\n");
    return words.every(function (word) { return text.indexOf(word) >= 0; });
  }

  // Which words of `text` stand in `other` too, in the same order: the longest common subsequence.
  function common(text, other) {
    var kept = text.map(function () { return false; }), first = 0, last = 0;
    while (first < text.length && first < other.length && text[first] === other[first]) kept[first++] = true;
    while (last < text.length - first && last < other.length - first &&
           text[text.length - 1 - last] === other[other.length - 1 - last]) kept[text.length - 1 - last++] = true;
    var a = text.slice(first, text.length - last), b = other.slice(first, other.length - last);
    if (!a.length || !b.length || a.length > LONGEST_DIFF || b.length > LONGEST_DIFF) return kept;
    var width = b.length + 1, lengths = new Uint16Array((a.length + 1) * width);
    for (var i = a.length - 1; i >= 0; i--) for (var j = b.length - 1; j >= 0; j--) {
      lengths[i * width + j] = a[i] === b[j] ? lengths[(i + 1) * width + j + 1] + 1
        : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
    for (i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) { kept[first + i] = true; i++; j++; }
      else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
      else j++;
    }
    return kept;
  }

  function words(text) { return text.match(/\s+|[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu) || []; }

  function marked(place, against) {
    var box = element("pre"), text = data.texts[place];
    box.dir = "auto";
    if (against === null || against === place) { box.textContent = text; return box; }
    var own = words(text), kept = common(own, words(data.texts[against]));
    for (var i = 0; i < own.length;) {
      var end = i;
      while (end < own.length && kept[end] === kept[i]) end++;
      var part = own.slice(i, end).join("");
      box.appendChild(kept[i] ? document.createTextNode(part) : element("mark", part));
      i = end;
    }
    return box;
  }

  function side(title, entry, against) {
    var box = element("div");
    for (var i = 0; i < entry.length; i += 2) {
      var outcome = data.outcomes[entry[i + 1]] || "";
      var number = entry.length > 2 ? ", answer " + (i / 2 + 1) : "";
      var sign = outcome === "correct" ? "\u2713 " : outcome ? "\u2717 " : "";
      box.appendChild(element("p", sign + title + number + (outcome ? ": " : "") + outcome));
      box.appendChild(marked(entry[i], against && i < against.length ? against[i] : null));
    }
    return box;
  }

  function draw(run, item, stages) {
    var box = element("article"), asked = element("dl", "", "asked"), sides = element("div", "", "sides");
    var name = data.items[item][0];
    box.dataset.item = name;
    // An id may be a digest of 64 letters: its beginning tells items apart.
    box.appendChild(element("h2", "Item " + (item + 1) + ": " + name.slice(0, 40) + (name.length > 40 ? "\u2026" : "")));
    [["Prompt", 1], ["Expected", 2]].forEach(function (part) {
      asked.appendChild(element("dt", part[0]));
      asked.appendChild(element("dd")).appendChild(marked(data.items[item][part[1]], null));
    });
    var chain = form.elements.against.value === "before" && stages.length > 1;
    stages.forEach(function (stage) {
      var entry = answers(run, stage, item), other = comparison(run, stage);
      var before = other && answers(other.run, other.stage, item);
      if (!entry) return;
      if (before && !chain) sides.appendChild(side(other.title, before, entry));
      sides.appendChild(side(run.names[stage], entry, before));
    });
    box.appendChild(asked);
    box.appendChild(sides);
    return box;
  }

  function apply() {
    var run = offer(), stage = form.elements.stage.value, wanted = form.elements.outcome.value;
    var words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    var stages = stage === "" ? stagesOf(run) : [Number(stage)];
    var all = data.items.map(function (_, item) { return item; }).filter(function (item) {
      return stagesOf(run).some(function (each) { return answers(run, each, item); });
    });
    var chosen = all.filter(function (item) {
      return stages.some(function (each) { return fits(run, each, item, wanted); }) && search(run, item, words);
    });
    var last = Math.max(0, Math.ceil(chosen.length / PER_PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    list.replaceChildren.apply(list, chosen.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(function (item) {
      return draw(run, item, stages);
    }));
    shown.textContent = chosen.length + " of " + all.length + " items";
    pages.hidden = last === 0;
    pages.querySelector("span").textContent = "page " + (page + 1) + " of " + (last + 1);
    document.getElementById("back").disabled = page === 0;
    document.getElementById("next").disabled = page === last;
    var state = new URLSearchParams();
    NAMES.concat("search").forEach(function (name) {
      if (form.elements[name].value) state.set(name, form.elements[name].value);
    });
    history.replaceState(null, "", "#" + state);
  }

  function turn(by) {
    page += by;
    apply();
    list.scrollIntoView();
  }

  // An address names method, stage and so on; the lists are offered again, because stages depend on the method.
  function read() {
    var state = new URLSearchParams(location.hash.slice(1));
    page = 0;
    NAMES.forEach(function (name) {
      offer();
      var select = form.elements[name], value = state.get(name);
      if (Array.from(select.options).some(function (option) { return option.value === value; })) select.value = value;
    });
    form.elements.search.value = state.get("search") || "";
    apply();
  }

  form.hidden = false;
  form.addEventListener("input", function () { page = 0; apply(); });
  form.addEventListener("reset", function () { setTimeout(function () { page = 0; apply(); }, 0); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  document.getElementById("back").addEventListener("click", function () { turn(-1); });
  document.getElementById("next").addEventListener("click", function () { turn(1); });
  window.addEventListener("hashchange", read);
  read();
})();
