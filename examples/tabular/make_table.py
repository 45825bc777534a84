"""Write scikit-learn's wine data as a CSV file: 178 wines, 13 measurements, 3 cultivars.

python examples/tabular/make_table.py
"""

from sklearn.datasets import load_wine


def main() -> None:
    """Write ``wine.csv``."""
    raw = load_wine(as_frame=True)
    table = raw.data.assign(cultivar=[raw.target_names[index] for index in raw.target])
    table.to_csv("wine.csv", index=False)
    print(f"wine.csv: {len(table)} rows, {len(raw.feature_names)} measurements")


if __name__ == "__main__":
    main()
