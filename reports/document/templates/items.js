(function () {
  "use strict";
  var form = document.getElementById("filters");
  var shown = document.getElementById("shown");
  var items = Array.prototype.slice.call(document.querySelectorAll("article"));
  var texts = items.map(function (item) { return item.textContent.toLowerCase(); });
  function apply() {
    var words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    var count = 0;
    items.forEach(function (item, number) {
      var fits = ["method", "seed", "comparison", "change"].every(function (name) {
        var wanted = form.elements[name].value;
        return !wanted || item.dataset[name] === wanted;
      }) && words.every(function (word) { return texts[number].indexOf(word) >= 0; });
      item.hidden = !fits;
      count += fits ? 1 : 0;
    });
    shown.textContent = count + " of " + items.length + " shown";
  }
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("reset", function () { setTimeout(apply, 0); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  apply();
})();
